"""Trap 7 for real: two gloo processes, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "ddp_script.py"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)


def epochs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    one, other = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    return one, other


def assert_equal_ranks(folder: Path, epochs_run: int = 5) -> dict[str, Any]:
    one, other = epochs(folder)
    assert len(one) == epochs_run
    for epoch, row in one.items():
        assert row == other[epoch], f"the ranks differ after epoch {epoch}"
    return one


def test_trap_07_ranks_agree_at_every_epoch_and_after_a_resume(tmp_path: Path) -> None:
    # Seen to fail with the frozen set applied in setup, before DDP wraps: from epoch 1 on, the checksums of layer2
    # differed between the ranks. (Without find_unused_parameters the second step raises.)
    done = run(tmp_path / "whole", "two thaws")
    assert done.returncode == 0, done.stderr[-3000:]
    whole = assert_equal_ranks(tmp_path / "whole")
    assert [len(row["trains"]) for row in whole.values()] == [2, 6, 6, 13, 13]
    assert all(row["find_unused"] for row in whole.values()), "set for the user"
    for step in (2, 7):  # at the thaw of epoch 1; within epoch 3, after its thaw
        folder = tmp_path / f"resumed{step}"
        resumed = run(folder, "two thaws", "--ckpt", str(tmp_path / "whole" / f"step={step}.ckpt"))
        assert resumed.returncode == 0, resumed.stderr[-3000:]
        rows = assert_equal_ranks(folder, 5 - step // 2)
        at_epoch_ends = step % 2 == 0  # within an epoch, torch's own loader cannot be resumed
        for epoch, row in rows.items():
            assert row["trains"] == whole[epoch]["trains"]
            assert row["parameters"] == whole[epoch]["parameters"] or not at_epoch_ends


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["static", "on plateau", "recalibrate"])
def test_trap_07_ranks_agree_under_every_schedule(schedule: str, tmp_path: Path) -> None:
    # "on plateau" was seen to fail without the broadcast of the monitored value: rank 0 thawed, rank 1 did not.
    done = run(tmp_path, schedule)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = assert_equal_ranks(tmp_path)
    if schedule == "static":
        assert not any(row["find_unused"] for row in rows.values()), "nothing thaws: DDP need not look"


def test_trap_07_the_audit_notices_ranks_that_differ(tmp_path: Path) -> None:
    done = run(tmp_path, "two thaws", "--diverge")
    assert done.returncode != 0
    assert "FreezeAudit: 'backbone.layer2.0.weight' differs between the ranks after epoch 1" in done.stderr


def test_what_ddp_cannot_do_is_said_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "two thaws", "--strategy", "ddp_find_unused_parameters_false")
    assert done.returncode != 0
    assert "pass strategy='ddp' (it is then set for you)" in done.stderr
