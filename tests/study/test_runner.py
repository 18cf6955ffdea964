"""The runner, driven by a study small enough to run in no time: what is kept, continued, refused and reported."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tl_lightning.errors import UserError
from tl_lightning.study.design import Arm, Study
from tl_lightning.study.runner import run_study
from tl_lightning.study.settings import Settings

CALLS: list[str] = []


def arms(settings):
    return [Arm("shallow", {"depth": 1}), Arm("deep", {"depth": 5})]


def estimate_mean(trial, settings):
    """A trial: the mean of a few random numbers, shifted by the depth."""
    CALLS.append(trial.id)
    sample = np.random.default_rng(trial.seed).normal(trial.arm.factors["depth"], 1, settings.epochs)
    return {"test_accuracy": float(sample.mean()), "val_accuracy": 0.5, "data_fingerprint": str(trial.seed)}


def report(report):
    report.conclude(f"{len(report.results)} trials")
    report.table(report.results[["arm", "seed", "test_accuracy"]])


STUDY = Study("tiny", "Which is deeper?", "Background.", arms, estimate_mean, report)


@pytest.fixture
def settings(tmp_path):
    CALLS.clear()
    return Settings(out=str(tmp_path / "out"), seeds=3, gpus=0)


def test_a_study_leaves_its_tables_and_its_report(settings, tmp_path):
    assert run_study(STUDY, settings) == 0
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(results) == 6
    assert set(results["status"]) == {"ok"}
    assert set(results["depth"]) == {1, 5}
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert list(summary["arm"]) == ["shallow", "deep"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- 6 trials" in text
    assert "Background." in text


def test_the_same_command_again_runs_nothing_and_changes_nothing(settings, tmp_path):
    run_study(STUDY, settings)
    before = (tmp_path / "out" / "results.csv").read_text()
    CALLS.clear()
    assert run_study(STUDY, settings) == 0
    assert CALLS == []
    assert (tmp_path / "out" / "results.csv").read_text() == before


def test_more_seeds_continue_the_study(settings):
    run_study(STUDY, settings)
    CALLS.clear()
    run_study(STUDY, replace(settings, seeds=4))
    assert CALLS == ["shallow--seed3", "deep--seed3"]


def test_an_interrupted_study_continues(settings, tmp_path):
    def stop_at_third(trial, settings):
        if len(CALLS) == 2:
            raise KeyboardInterrupt
        return estimate_mean(trial, settings)

    with pytest.raises(KeyboardInterrupt):
        run_study(replace(STUDY, run=stop_at_third), settings)
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 2
    CALLS.clear()
    assert run_study(STUDY, settings) == 0
    assert len(CALLS) == 4


def test_a_failed_trial_is_a_row_and_the_study_goes_on(settings, tmp_path, capsys):
    def fail_once(trial, settings):
        if trial.id == "deep--seed1":
            raise RuntimeError("the loss\nis nan")
        return estimate_mean(trial, settings)

    assert run_study(replace(STUDY, run=fail_once), settings) == 1
    results = pd.read_csv(tmp_path / "out" / "results.csv").set_index("status")
    assert results.loc["failed", "error"] == "RuntimeError: the loss is nan"
    assert len(results.loc["ok"]) == 5
    assert "the loss is nan" in (tmp_path / "out" / "report.md").read_text()
    assert "Traceback" in (tmp_path / "out" / "trials" / "deep--seed1" / "error.txt").read_text()
    CALLS.clear()
    assert run_study(STUDY, settings) == 1
    assert CALLS == []
    assert run_study(STUDY, replace(settings, retry_failed=True)) == 0
    assert CALLS == ["deep--seed1"]


def test_another_configuration_is_refused_until_fresh(settings):
    run_study(STUDY, settings)
    with pytest.raises(UserError, match="epochs"):
        run_study(STUDY, replace(settings, epochs=9))
    CALLS.clear()
    assert run_study(STUDY, replace(settings, epochs=9, fresh=True)) == 0
    assert len(CALLS) == 6


def test_trials_of_images_that_were_decoded_otherwise_are_not_continued(settings, tmp_path):
    run_study(STUDY, settings)
    path = tmp_path / "out" / "study.json"
    state = json.loads(path.read_text())
    state["configuration"]["image_decoding"] -= 1
    path.write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"another configuration: image_decoding \d -> \d; use --fresh"):
        run_study(STUDY, replace(settings, seeds=4))
    del state["configuration"]["image_decoding"]  # written before it was noted
    path.write_text(json.dumps(state))
    assert run_study(STUDY, replace(settings, seeds=4)) == 0


def test_settings_that_no_trial_could_run_are_refused_before_the_first(settings, tmp_path):
    def check(settings):
        raise UserError("no such backbone")

    with pytest.raises(UserError, match="no such backbone"):
        run_study(replace(STUDY, check=check), settings)
    assert CALLS == []
    assert not (tmp_path / "out").exists()


def test_asking_for_more_gpus_than_there_are_is_said(settings, capsys):
    run_study(STUDY, replace(settings, gpus=64))
    assert "--gpus 64" in capsys.readouterr().err


def test_the_record_holds_what_repeats_the_trial(settings, tmp_path):
    run_study(STUDY, settings)
    record = json.loads((tmp_path / "out" / "trials" / "deep--seed2" / "record.json").read_text())
    assert record["seed"] == 2
    assert record["factors"] == {"depth": 5}
    assert "torch" in json.dumps(record["versions"])
