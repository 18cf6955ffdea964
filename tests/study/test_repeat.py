"""`--repeat`: a trial runs again from its record alone and is compared with it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from processes import DEPTHS, FREEZING, ROOT, TINY

from tl_lightning.study.repeat import differences


def repeat(*arguments):
    command = [sys.executable, str(FREEZING), *map(str, arguments), *DEPTHS]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.slow
def test_a_trial_agrees_with_its_record_until_the_record_is_changed(serial):
    before = sorted(serial.rglob("*"))
    done = repeat("--repeat", "progressive--seed0", "--out", serial)  # the settings are those of the record
    assert done.returncode == 0, done.stdout + done.stderr
    assert "progressive--seed0 agrees with its record" in done.stdout
    path = serial / "trials" / "progressive--seed0" / "record.json"
    original = path.read_text()
    record = json.loads(original)
    record["val_loss"] += 1e-7
    record["curve"][1]["train/loss"] = 3.0
    path.write_text(json.dumps(record))
    try:
        done = repeat("--repeat", "progressive--seed0", "--out", serial)
    finally:
        path.write_text(original)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "progressive--seed0 does not agree with its record: 2 values differ"
    assert {line.split(":")[0] for line in lines[:-1] if not line.startswith("note")} == {
        "val_loss",
        "curve.1.train/loss",
    }
    assert sorted(serial.rglob("*")) == before


@pytest.mark.slow
def test_a_trial_that_was_never_recorded_is_one_line(serial):
    done = repeat("--repeat", "progresive--seed0", "--out", serial)
    assert done.returncode == 2
    assert "did you mean progressive--seed0" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_deterministic_algorithms_are_recorded(tmp_path):
    done = repeat(*TINY, "--deterministic", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "True" in (tmp_path / "results.csv").read_text()
    record = json.loads((tmp_path / "trials" / "progressive--seed0" / "record.json").read_text())
    assert record["deterministic"] is True
    assert record["settings"]["deterministic"] is True


@pytest.mark.parametrize(
    "name",
    ["train_seconds", "curve.3.seconds", "images_per_second", "peak_memory_mb", "step_time_ratio", "wall_seconds"],
)
def test_what_a_clock_says_is_not_compared(name):
    assert differences({name: 1}, {name: 2}) == {}


@pytest.mark.parametrize("name", ["val_accuracy", "optimizer_steps", "train_loss", "timed_out", "image_size", "seed"])
def test_everything_else_is_compared(name):
    assert differences({name: 1}, {name: 2}) == {name: (1, 2)}
    assert differences({name: 1}, {}) == {name: (1, "(nothing)")}
