"""Trials on a Ray cluster and as submitit jobs: the results of a serial run, also when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from processes import TINY, TRIALS, Running, finished, results

from tl_lightning.errors import UserError
from tl_lightning.study.design import Arm, Study
from tl_lightning.study.launchers.source import StudySource
from tl_lightning.study.runner import run_study
from tl_lightning.study.settings import Settings

MORTAL = """
import os, signal
from tl_lightning import study
from tl_lightning.study import Arm


def run(trial, settings):
    if trial.arm.name == "mortal":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"test_accuracy": 0.5, "val_accuracy": 0.5}


STUDY = study.Study("mortal", "Who dies?", "", lambda s: [Arm("mortal"), Arm("lives")], run, lambda report: None)
if __name__ == "__main__":
    study.main(STUDY)
"""


SLEEPY = """
import time
import numpy as np
from tl_lightning import study
from tl_lightning.study import Arm


def run(trial, settings):
    time.sleep(2)
    sample = np.random.default_rng(trial.seed).normal(trial.arm.factors["depth"], 1, 100)
    return {"test_accuracy": float(sample.mean()), "val_accuracy": 0.5}


def arms(settings):
    return [Arm(f"depth {depth}", {"depth": depth}) for depth in (1, 2)]


STUDY = study.Study("sleepy", "Which is deeper?", "", arms, run, lambda report: None)
if __name__ == "__main__":
    study.main(STUDY)
"""


@pytest.fixture
def cluster():
    """Two Ray nodes on this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.second = nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def on_ray(cluster, *arguments, script):
    options = json.dumps({"address": cluster.address})
    return Running(*arguments, "--launcher", "ray", "--launcher-options", options, script=script)


@pytest.mark.slow
def test_a_node_that_is_killed_costs_no_trial(cluster, tmp_path):
    script = tmp_path / "sleepy.py"
    script.write_text(SLEEPY)
    arguments = ["--seeds", "10", "--jobs", "1", "--gpus", "0", "--out"]
    assert Running(*arguments, tmp_path / "serial", script=script).wait() == 0
    study = on_ray(cluster, *arguments, tmp_path / "ray", script=script)
    assert study.wait_for(r"\[2/20\]", seconds=400), study.stderr
    time.sleep(0.7)  # into the next trials, which take two seconds
    cluster.remove_node(cluster.second, allow_graceful=False)
    assert study.wait() == 0, study.stderr
    assert "died" in study.stderr
    assert len(finished(tmp_path / "ray")) == 20
    assert results(tmp_path / "ray") == results(tmp_path / "serial")


@pytest.mark.slow
def test_a_trial_whose_worker_always_dies_fails_after_three_attempts(cluster, tmp_path):
    script = tmp_path / "mortal.py"
    script.write_text(MORTAL)
    study = on_ray(cluster, "--out", tmp_path / "out", "--seeds", "1", "--jobs", "1", "--gpus", "0", script=script)
    assert study.wait() == 1, study.stderr
    assert study.stderr.count("the worker of mortal--seed0 died") == 3
    records = {name: json.loads(content) for name, (_, _, content) in finished(tmp_path / "out").items()}
    assert records["lives--seed0"]["status"] == "ok"
    assert records["mortal--seed0"]["error"].startswith("its worker died 3 times")


LOCAL_JOBS = json.dumps({"cluster": "local", "timeout_min": 10, "width": 2})


@pytest.mark.slow
def test_a_job_that_is_killed_runs_again(serial, tmp_path):
    pytest.importorskip("submitit")
    study = Running(*TINY, "--out", tmp_path, "--launcher", "slurm", "--launcher-options", LOCAL_JOBS)
    assert study.wait_for(r"\[1/8\]")
    end = time.monotonic() + 60
    while not (claims := list(tmp_path.glob("trials/*/claim.json"))) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(json.loads(claims[0].read_text())["pid"], signal.SIGKILL)
    assert study.wait() == 0, study.stderr
    assert study.stderr.count("died") == 1
    assert len(finished(tmp_path)) == TRIALS
    assert results(tmp_path) == results(serial)


def test_a_study_that_no_script_holds_is_refused(tmp_path):
    made = Study("made", "?", "", lambda s: [Arm("one")], lambda trial, settings: {}, lambda report: None)
    with pytest.raises(UserError, match="as a variable of a script"):
        run_study(made, Settings(out=str(tmp_path), gpus=0, seeds=1, launcher="ray"))


def test_a_study_is_found_in_its_script_and_loaded_again(tmp_path):
    script = tmp_path / "mortal.py"
    script.write_text(MORTAL)
    study = StudySource(str(script), "STUDY").load()
    assert StudySource.of(study) == StudySource(str(script), "STUDY")
    assert study.name == "mortal"
