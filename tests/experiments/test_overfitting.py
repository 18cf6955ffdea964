"""The overfitting study through its command: what each regulariser does, the gap, the criteria."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from experiment import load

from tl_lightning import create_backbone
from tl_lightning.study.cli import main

ROOT = Path(__file__).parents[2]
BACKBONE = "shufflenet_v2_x0_5"
TINY = [
    *("--data", "digits", "--backbone", BACKBONE, "--image-size", "32", "--sizes", "[2,4]"),
    *("--max-val-samples", "20", "--max-test-samples", "20", "--batch-size", "20", "--epochs", "2", "--seeds", "1"),
    *("--learning-rates", "0.01", "--scratch-epochs", "2", "--jobs", "1", "--gpus", "0"),
]


def script():
    return load("overfitting")


def run(out: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(script().STUDY, [*TINY, *arguments, "--out", str(out)])
    return end.value.code


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Stand-in for pretrained weights: those of a network that has seen nothing, the same for all arms."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(create_backbone(BACKBONE, "none", num_classes=10).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def ended(tmp_path_factory, weights):
    """A real run, tiny: its output folder."""
    out = tmp_path_factory.mktemp("overfitting")
    assert run(out, "--weights", str(weights)) == 0
    return out


@pytest.fixture(scope="module")
def results(ended):
    return pd.read_csv(ended / "results.csv")


def test_every_regulariser_runs_at_every_size_and_scratch_at_the_largest(results):
    counts = results.groupby(["start", "samples_per_class"])["method"].nunique()
    assert counts.to_dict() == {("pretrained", 2): 11, ("pretrained", 4): 11, ("scratch", 4): 2}
    assert set(results["status"]) == {"ok"}
    tuned = results[(results["start"] == "pretrained") & (results["method"] != "early stopping")]
    assert tuned["optimizer_steps"].nunique() == 1
    assert (results.loc[results["start"] == "scratch", "optimizer_steps"] == 2 * tuned["optimizer_steps"].iloc[0]).all()


def test_no_two_regularisers_train_alike(ended):
    losses = {}
    for path in sorted(ended.glob("trials/*2-a-class*/*.json")):
        record = json.loads(path.read_text())
        key = (record["curve"][-1]["train/loss"], record["curve"][-1]["val/loss"])
        losses.setdefault(key, []).append(record["arm"])
    stopped = {"none, 2 a class", "early stopping, 2 a class"}  # may stop at the last epoch, or not at all
    assert all(len(arms) == 1 or set(arms) == stopped for arms in losses.values()), losses


def test_the_gap_is_that_of_clean_training_images_to_validation(results):
    gap = results["train_clean_accuracy"] - results["val_accuracy"]
    assert results["gap"].to_numpy() == pytest.approx(gap.to_numpy())
    assert (results["train_clean_accuracy"] != results["train_accuracy"]).any()
    assert results["test_ece"].between(0, 1).all()


def test_the_criteria_are_evaluated_and_what_one_set_cannot_decide_is_named(ended):
    criteria = pd.read_csv(ended / "criteria.csv")
    assert criteria["finding"].tolist() == ["7a", "7b", "7b", "7b"]
    assert criteria["verdict"].iloc[-1] == "not decided"
    assert "is missing" in criteria["note"].iloc[-1]
    for name in ("gains_2", "gains_4", "gap_by_epoch", "calibration"):
        assert (ended / f"{name}.png").stat().st_size > 0
        assert f"{name}.png" in (ended / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "[4]"], "--sizes must be at least two different numbers"),
        (["--weights", "none"], "leaves nothing to fine-tune"),
        (["--scratch-epochs", "0"], "--scratch-epochs must be at least 1"),
    ],
)
def test_what_no_trial_could_run_is_one_line_before_the_first(arguments, message, tmp_path, capsys):
    assert run(tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
