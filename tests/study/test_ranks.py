"""Several processes for each trial train what one process trains."""

from __future__ import annotations

import json
import os
import socket

import pandas as pd
import pytest
from processes import TINY, Running

# BatchNorm in training mode sees the images of its own process only (SyncBatchNorm is for GPUs): freeze it.
SCRIPT = """
from tl_lightning import study
from tl_lightning.study import Arm


def run(trial, settings):
    return study.train_and_test(trial, settings, freezing=trial.arm.factors["frozen"])


def report(report):
    report.table(report.results[["arm", "test_accuracy"]])


STUDY = study.Study(
    "ranks", "One or two?", "", lambda settings: [Arm("head", {"frozen": "head"})], run, report
)
if __name__ == "__main__":
    study.main(STUDY)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "ranks.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def single(script, tmp_path_factory):
    out = tmp_path_factory.mktemp("single")
    study = Running(*TINY, "--seeds", "2", "--out", out, script=script)
    assert study.wait() == 0, study.stderr
    return pd.read_csv(out / "results.csv")


def compare(out, single):
    table = pd.read_csv(out / "results.csv")
    assert list(table["trial"]) == list(single["trial"])
    assert set(table["processes"]) == {2}
    assert set(table["micro_batch"]) == {4}
    assert set(single["micro_batch"]) == {8}
    for name in ("optimizer_steps", "images_seen", "test_fingerprint", "data_fingerprint", "trainable_parameters"):
        assert list(table[name]) == list(single[name]), name
    for name in ("val_loss", "test_loss", "val_accuracy", "test_accuracy", "test_auroc"):
        assert list(table[name]) == pytest.approx(list(single[name]), abs=1e-5), name


@pytest.mark.slow
def test_two_processes_on_one_machine(script, single, tmp_path):
    arguments = [*TINY, "--seeds", "2", "--strategy", "ddp", "--processes", "2", "--out", tmp_path]
    study = Running(*arguments, script=script)
    assert study.wait() == 0, study.stderr
    compare(tmp_path, single)


@pytest.mark.slow
def test_two_machines(script, single, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = [*TINY, "--seeds", "2", "--strategy", "ddp", "--num-nodes", "2", "--out", tmp_path]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    machines = [Running(*arguments, script=script, NODE_RANK=str(rank), **shared) for rank in (0, 1)]
    assert [machine.wait() for machine in machines] == [0, 0], [machine.stderr for machine in machines]
    compare(tmp_path, single)
    record = json.loads(next(tmp_path.glob("trials/*/record.json")).read_text())
    assert record["settings"]["num_nodes"] == 2


def test_the_batch_must_be_divisible(tmp_path):
    study = Running(*TINY, "--strategy", "ddp", "--processes", "3", "--out", tmp_path)
    assert study.wait() == 2
    assert study.stderr == "error: --batch-size 8 must be a multiple of 3 processes times 2 images of --micro-batch"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("strategy", "message"),
    [("dpp", "did you mean ddp"), ("fsdp", "--strategy fsdp takes GPUs, and none is visible: ddp runs on CPUs too")],
)
def test_a_strategy_that_cannot_run_is_one_line(strategy, message, tmp_path):
    study = Running(*TINY, "--strategy", strategy, "--out", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert study.wait() == 2
    assert len(study.lines) == 1
    assert message in study.stderr
    assert os.listdir(tmp_path) == []
