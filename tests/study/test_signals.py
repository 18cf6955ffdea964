"""SIGTERM and Ctrl-C: the exit code, one line, what is kept; and a fit that goes on where it was."""

from __future__ import annotations

import json
import signal
import time

import pytest
from processes import ROOT, TINY, Running, finished, results


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_study_in_good_order(number, code, tmp_path):
    study = Running(*TINY, "--out", tmp_path)
    assert study.wait_for(r"^\[2/8\]|\n\[2/8\]")
    time.sleep(0.3)
    assert study.end(number) == code, study.stderr
    assert study.lines[-1] == (
        f"stopped by {signal.Signals(number).name}; the same command goes on with the trials that are left"
    )
    assert "Traceback" not in study.stderr
    assert len(finished(tmp_path)) in (2, 3)
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(finished(tmp_path))
    assert (tmp_path / "report.md").exists()
    assert not list(tmp_path.rglob("claim.json"))


LONG = [*TINY, "--learning-rates", "[0.01, 0.02]", "--epochs", "40", "--checkpoint-seconds", "0"]


@pytest.mark.slow
def test_a_fit_goes_on_from_its_last_checkpoint(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    script = tmp_path / "two_rates.py"
    script.write_text(SCRIPT)
    assert Running(*LONG, "--out", whole, script=script).wait() == 0
    signals = [signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
    epochs = []
    for number in [*signals, None]:
        study = Running(*LONG, "--out", stopped, script=script, PATH="")  # no git: a commit ends a checkpoint's life
        if number is None:
            assert study.wait() == 0, study.stderr
        else:
            assert study.wait_for("epoch")
            time.sleep(0.5)
            study.end(number)
            assert list(stopped.rglob("resume-*.ckpt")), study.stderr
        epochs.append([line for line in study.lines if line.startswith("epoch")])
    ran = [line for lines in epochs for line in lines]
    assert all(epochs)
    assert epochs[1][0] != epochs[0][0], "the second call began anew"
    assert len(ran) <= 2 * 40 + len(signals), "more was run again than the epochs that were cut"
    assert results(stopped) == results(whole)
    assert _curves(stopped) == _curves(whole)
    assert not list(stopped.rglob("resume-*.ckpt"))


def _curves(out):
    record = json.loads(next(out.glob("trials/*/record.json")).read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in record["curve"]], record[
        "candidates"
    ]


SCRIPT = """
import sys
from lightning.pytorch.callbacks import Callback
from tl_lightning import study
from tl_lightning.study import Arm


class Say(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        print(f"epoch {trainer.current_epoch} of {pl_module.hparams['lr']}", file=sys.stderr, flush=True)


def run(trial, settings):
    return study.train_and_test(
        trial, settings, freezing={0: "head", 10: "none"}, callbacks=lambda: [Say()]
    )


def report(report):
    report.table(report.results[["arm", "test_accuracy"]])


STUDY = study.Study("two_rates", "Does it go on?", "", lambda settings: [Arm("thaws")], run, report)
if __name__ == "__main__":
    study.main(STUDY)
"""


@pytest.mark.slow
def test_a_report_that_takes_longer_than_the_grace_is_written_in_full(tmp_path):
    script = tmp_path / "slow_report.py"
    script.write_text(f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from tl_lightning import study
from tl_lightning.study import Arm

def run(trial, settings):
    time.sleep(0.5)
    return {{"test_accuracy": 0.5, "val_accuracy": 0.5}}

def report(report):
    time.sleep(5)
    report.conclude("written in full")

study.main(study.Study("slow", "?", "", lambda s: [Arm(str(k)) for k in range(40)], run, report))
""")
    running = Running("--seeds", "1", "--jobs", "1", "--gpus", "0", "--out", tmp_path / "out", script=script)
    assert running.wait_for(r"\[2/40\]")
    assert running.end(signal.SIGTERM) == 143, running.stderr
    assert "written in full" in (tmp_path / "out" / "report.md").read_text()
