"""What is special about the study of pretrained against random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from experiment import load_study

import tl_lightning as tl
from tl_lightning.study.cli import main

SCRIPT = Path(__file__).parents[2] / "experiments" / "transfer_vs_scratch.py"
BACKBONE = "shufflenet_v2_x0_5"
TINY = [
    *("--backbone", BACKBONE, "--data", "digits", "--image-size", "32", "--sizes", "[2,4]"),
    *("--steps", "2", "--max-val-samples", "20", "--max-test-samples", "20", "--batch-size", "16"),
    *("--learning-rates", "0.001", "--scratch-learning-rates", "0.003", "--seeds", "1", "--jobs", "1", "--gpus", "0"),
]


def study():
    return load_study("transfer_vs_scratch")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights that stand for pretrained ones."""
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.manual_seed(0)
    torch.save(tl.create_backbone(BACKBONE).state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def out(tmp_path_factory, weights):
    """The output folder of a real run, tiny."""
    folder = tmp_path_factory.mktemp("transfer_vs_scratch")
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, "--weights", weights, "--out", str(folder)])
    assert end.value.code == 0
    return folder


def test_scratch_takes_five_times_the_steps_and_rates_of_its_own(out, weights):
    results = pd.read_csv(out / "results.csv").set_index(["method", "samples_per_class", "label_noise"])
    assert results.loc[("fine-tuned", 2, 0), "epochs"] == 1
    assert results.loc[("scratch 1x", 2, 0), "epochs"] == 1
    assert results.loc[("scratch 5x", 2, 0), "epochs"] == 5  # of two steps
    assert results.loc[("fine-tuned 5x", 4, 0), "epochs"] == 4  # of three
    records = [json.loads(path.read_text()) for path in out.glob("trials/*/record.json")]
    for record in records:
        tried = {candidate["learning_rate"] for candidate in record["candidates"]}
        scratch = record["factors"]["method"].startswith("scratch")
        assert tried == ({0.003} if scratch else {0.001})
        assert record["weights"] == ("none" if scratch else weights)


def test_wrong_labels_are_in_the_training_part_alone(out):
    results = pd.read_csv(out / "results.csv")
    largest = results[results["samples_per_class"] == 4]
    assert set(results.loc[results["label_noise"] > 0, "samples_per_class"]) == {4}
    assert largest.groupby("label_noise")["data_fingerprint"].nunique().tolist() == [1, 1]
    assert largest["data_fingerprint"].nunique() == 2
    assert results["test_fingerprint"].nunique() == 1


def test_all_criteria_are_reported_and_nothing_is_decided_with_one_seed(out):
    criteria = pd.read_csv(out / "criteria.csv")
    assert list(criteria["finding"]) == ["10a", "10a", "10b", "10c"]
    assert set(criteria["verdict"]) == {"not decided"}
    report = (out / "report.md").read_text()
    assert "Effective data" in report
    for figure in ("accuracy_by_images", "gap_by_images", "learning_curves", "drop_by_noise"):
        assert (out / f"{figure}.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "[4]"], "--sizes"),
        (["--sizes", "[4,100000]"], "100000"),
        (["--steps", "0"], "--steps"),
        (["--label-noise", "1.5"], "--label-noise"),
        (["--weights", "none"], "--weights none"),
        (["--scratch-learning-rates", "[0.1,0.2]"], "--scratch-learning-rates names 2"),
    ],
)
def test_what_cannot_be_is_one_line_before_the_first_trial(arguments, message, weights, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, "--weights", weights, *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
