"""Several processes on one output folder: every trial once, whoever dies, and everybody gets the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from processes import TINY, TRIALS, Running, finished, results

from tl_lightning.errors import UserError
from tl_lightning.study import claims
from tl_lightning.study.records import RecordStore


@pytest.mark.slow
def test_two_processes_share_the_trials(serial, tmp_path):
    pair = [Running(*TINY, "--out", tmp_path) for _ in range(2)]
    assert [study.wait() for study in pair] == [0, 0], [study.stderr for study in pair]
    ran = [[line.split("] ")[1].split(":")[0] for line in study.lines if line.startswith("[")] for study in pair]
    assert all(ran), "one process did all"
    assert len(ran[0] + ran[1]) == len({*ran[0], *ran[1]}) == TRIALS
    assert results(tmp_path) == results(serial)
    assert not list(tmp_path.rglob("claim.json"))


@pytest.mark.slow
def test_the_other_goes_on_with_what_a_killed_process_held(serial, tmp_path):
    first = Running(*TINY, "--out", tmp_path)
    assert first.wait_for(r"^\[1/8\]|\n\[1/8\]")
    second = Running(*TINY, "--out", tmp_path)
    assert second.wait_for("results in")
    with pytest.raises(UserError, match="in use by process"):
        RecordStore(tmp_path).open({}, fresh=True)
    first.end(signal.SIGKILL)
    assert second.wait() == 0, second.stderr
    assert len(finished(tmp_path)) == TRIALS
    assert results(tmp_path) == results(serial)


def other_host(path, **owner):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "token": "x", **owner}))


def test_a_claim_of_another_host_holds_while_it_is_renewed(tmp_path):
    store = RecordStore(tmp_path)
    store.open({})
    path = store.trials / "a--seed0" / claims.NAME
    other_host(path)
    with store.claims:
        assert not store.claims.take("a--seed0")
        assert store.claims.holder("a--seed0") == "process 1 on elsewhere"
        old = path.stat().st_mtime - claims.PATIENCE_SECONDS - 5
        os.utime(path, (old, old))
        assert store.claims.take("a--seed0")
        assert store.claims.holds("a--seed0")
        other_host(path)  # what another does after this process slept for long
        assert not store.claims.holds("a--seed0")
        store.claims.release("a--seed0")
        assert path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 3}'])
def test_a_claim_that_nobody_can_read_is_taken_after_a_while(content, tmp_path):
    store = RecordStore(tmp_path)
    store.open({})
    path = store.trials / "a--seed0" / claims.NAME
    other_host(path)
    path.write_text(content)
    with store.claims:
        assert not store.claims.take("a--seed0")
        os.utime(path, (1, 1))
        assert store.claims.take("a--seed0")


def test_claims_are_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    store = RecordStore(tmp_path)
    store.open({})
    with store.claims:
        store.claims.take("a--seed0")
        path = store.trials / "a--seed0" / claims.NAME
        os.utime(path, (1, 1))
        for _ in range(500):
            if path.stat().st_mtime > 1:
                break
            store.claims._end.wait(0.01)
        assert path.stat().st_mtime > 1
    assert not path.exists()


def test_fresh_and_other_settings_are_refused_while_somebody_works(tmp_path):
    program = (
        "import sys, time; from tl_lightning.study.records import RecordStore\n"
        "store = RecordStore(sys.argv[1]); store.open({'epochs': 1})\n"
        "with store.claims: print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=f"in use by process {process.pid} on"):
            RecordStore(tmp_path).open({"epochs": 1}, fresh=True)
        with pytest.raises(UserError, match="epochs 1 -> 2"):
            RecordStore(tmp_path).open({"epochs": 2})
        RecordStore(tmp_path).open({"epochs": 1})
    finally:
        process.kill()
        process.wait()
    RecordStore(tmp_path).open({"epochs": 2})
    RecordStore(tmp_path).open({"epochs": 1}, fresh=True)


CONTENDER = """
import os, random, sys, time
from tl_lightning.study.records import RecordStore
store = RecordStore(sys.argv[1])
with store.lock(60):
    store.open({})
with store.claims:
    left = [f"t--seed{n}" for n in range(25)]
    while left:
        for trial in list(left):
            if store.record(trial) is None and store.claims.take(trial):
                if store.record(trial) is None:
                    open(store.trials / trial / "inside", "x").close()
                    time.sleep(0.002)
                    if random.random() < 0.1 and "mortal" in sys.argv:
                        os.unlink(store.trials / trial / "inside")
                        os.kill(os.getpid(), 9)
                    store.write({"trial": trial, "status": "ok"})
                    os.unlink(store.trials / trial / "inside")
                    print(trial)
                store.claims.release(trial)
            if store.record(trial) is not None:
                left.remove(trial)
"""


def test_contenders_never_run_a_trial_together(tmp_path):
    arguments = [["mortal"], ["mortal"], [], []]
    processes = [
        subprocess.Popen([sys.executable, "-c", CONTENDER, tmp_path, *more], stdout=subprocess.PIPE, text=True)
        for more in arguments
    ]
    out = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes[2:]] == [0, 0]
    assert {process.returncode for process in processes[:2]} <= {0, -9}
    assert len(RecordStore(tmp_path).finished()) == 25
    printed = "".join(out[2:]).split()
    assert len(printed) == len(set(printed))
