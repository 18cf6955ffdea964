"""Several trials at one time on a CPU: the same results, whoever runs them, and nobody left behind."""

from __future__ import annotations

import os
import signal
import time

import pytest
from processes import TINY, TRIALS, Running, finished, results

TWO = [*TINY, "--jobs", "2"]
needs_two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two trials at one time take two cores")


def helpers_of(leader: int) -> list[int]:
    """Return the processes that a process has started."""
    children = f"/proc/{leader}/task/{leader}/children"
    if not os.path.exists(children):
        pytest.skip("child processes are looked up in /proc")
    with open(children) as file:
        return [int(word) for word in file.read().split()]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_alive(process):
    return os.path.exists(f"/proc/{process}")


@needs_two_cores
@pytest.mark.slow
def test_two_jobs_give_the_results_of_one(serial, tmp_path):
    study = Running(*TWO, "--out", tmp_path)
    assert study.wait_for("results in")
    wait_until(lambda: len({path.read_text() for path in tmp_path.glob("trials/*/claim.json")}) == 2)
    assert study.wait() == 0, study.stderr
    assert [line for line in study.lines if line.startswith(f"[{TRIALS}/{TRIALS}]")], study.stderr
    assert len([line for line in study.lines if line.startswith("[")]) == TRIALS
    assert results(tmp_path) == results(serial)
    assert not list(tmp_path.rglob("claim.json"))


@needs_two_cores
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_helper_ends_with_its_study(number, code, serial, tmp_path):
    study = Running(*TWO, "--out", tmp_path)
    assert study.wait_for(r"\[1/8\]")
    helpers = helpers_of(study.process.pid)
    assert helpers
    assert study.end(number) == code, study.stderr
    wait_until(lambda: not any(map(is_alive, helpers)))
    kept = finished(tmp_path)
    again = Running(*TWO, "--out", tmp_path)
    assert again.wait() == 0, again.stderr
    assert kept.items() <= finished(tmp_path).items(), "a finished trial was lost or run again"
    assert results(tmp_path) == results(serial)


@needs_two_cores
@pytest.mark.slow
def test_the_study_goes_on_without_a_helper_that_was_killed(serial, tmp_path):
    study = Running(*TWO, "--out", tmp_path)
    assert study.wait_for(r"\[1/8\]")
    for helper in helpers_of(study.process.pid):
        os.kill(helper, signal.SIGKILL)
    assert study.wait() == 0, study.stderr
    assert len(finished(tmp_path)) == TRIALS
    assert results(tmp_path) == results(serial)
