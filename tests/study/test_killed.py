"""Killed at any moment, a study loses no finished trial, runs none twice, and ends with the same results.

`TL_LIGHTNING_KILLS=30 pytest -n 0 -m slow tests/study/test_killed.py` kills as often as that; 5 kills by default.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from processes import TINY, TRIALS, Running, finished, results

KILLS = int(os.environ.get("TL_LIGHTNING_KILLS", "5"))


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    seeds = 1 if KILLS < 10 else 2
    arguments = [*TINY, "--seeds", seeds]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert Running(*arguments, "--out", whole).wait() == 0
    rng = random.Random(KILLS)
    kills, before, ran = 0, {}, []
    for _ in range(4 * KILLS):
        study = Running(*arguments, "--out", killed)
        ended = _wait_for_a_moment(study, rng)
        ended = study.end(signal.SIGKILL) != -signal.SIGKILL or ended
        kills += not ended
        assert not ended or study.process.returncode == 0, study.stderr
        after = finished(killed)
        assert {name: after.get(name) for name in before} == before, "a finished trial was lost or run again"
        ran += [line.split("] ")[1].split(":")[0] for line in study.lines if line.startswith("[")]
        before = after
        if kills >= KILLS:
            break
    assert kills == KILLS
    last = Running(*arguments, "--out", killed)
    assert last.wait() == 0, last.stderr
    assert len(ran) == len(set(ran)), "a trial ended twice"
    assert len(finished(killed)) == seeds * TRIALS
    assert results(killed) == results(whole)
    assert not list(killed.rglob("*.tmp"))
    assert not list(killed.rglob("claim.json"))
    assert not list(killed.rglob("*.ckpt"))


def _wait_for_a_moment(study: Running, rng: random.Random) -> bool:
    """Wait until a random moment of the start, of a trial or of the report; return whether the study has ended."""
    phase = rng.choice(["start", "trial", "trial", "trial", "report"])
    if phase == "start":
        time.sleep(rng.uniform(0, 5))
    else:
        study.wait_for(r"^\[" if phase == "report" else "results in")
        time.sleep(rng.uniform(0, 2))
    return study.process.poll() is not None
