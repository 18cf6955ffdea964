"""What is special about the introduction."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from experiment import load_study

from tl_lightning.study.cli import main

SCRIPT = Path(__file__).parents[2] / "experiments" / "introduction.py"
TINY = [
    *("--backbone", "efficientnet_lite0", "--backbones", "[efficientnet_lite0]", "--data", "digits"),
    *("--image-size", "32", "--sizes", "[2,4]", "--steps", "2", "--own-backbone", "shufflenet_v2_x0_5"),
    *(
        "--own-source-samples",
        "8",
        "--own-epochs",
        "1",
        "--own-sizes",
        "[2,3]",
        "--own-steps",
        "2",
        "--max-val-samples",
        "20",
    ),
    *("--max-test-samples", "20", "--batch-size", "16", "--learning-rates", "0.001"),
    *("--scratch-learning-rates", "0.003", "--seeds", "1", "--jobs", "1", "--gpus", "0"),
]


def study():
    return load_study("introduction")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The output folder of a real run, tiny."""
    folder = tmp_path_factory.mktemp("introduction")
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, "--out", str(folder)])
    assert end.value.code == 0
    return folder


@pytest.fixture(scope="module")
def results(out):
    """The results by arm."""
    return pd.read_csv(out / "results.csv").set_index("arm")


def test_features_are_judged_without_training_and_without_the_test_set(results):
    rows = results[results["part"] == "features"]
    assert list(rows["method"]) == ["pretrained", "random weights"]
    assert (rows["epochs"] == 0).all()
    assert rows["test_accuracy"].isna().all()
    assert rows[["val_knn_accuracy", "val_probe_accuracy"]].stack().between(0, 1).all()
    assert rows.loc["features of efficientnet_lite0, pretrained", "val_probe_accuracy"] > 0.3  # chance is 0.1


def test_one_source_serves_every_arm_of_a_seed_and_the_control_trains_as_long(out, results):
    kept = sorted(path.parent.name for path in out.glob("trials/.sources/*/weights.pt"))
    assert len(kept) == 3  # the source, and the control at two sizes
    rows = results[results["part"] == "own network"]
    steps = rows["source_steps"].dropna()
    source = rows.loc[["own: transfer, 2 a class", "own: frozen transfer, 3 a class"], "source_steps"]
    assert source.nunique() == 1
    control = rows.loc[rows["method"] == "self-transfer", "source_steps"]
    assert (control >= source.iloc[0]).all()
    assert (control < source.iloc[0] + 2).all()  # rounded up to whole epochs
    assert len(steps) == 6
    assert rows.loc[rows["method"].isin(["scratch", "frozen random"]), "source_steps"].isna().all()


def test_the_source_never_saw_the_target_classes(out):
    records = [json.loads(path.read_text()) for path in out.glob("trials/own*/record.json")]
    assert {record["weights"] for record in records} == {"none", "own, classes 0 1 2 3 4", "own, the target images"}
    assert len({record["test_fingerprint"] for record in records}) == 1
    assert all(str(out) not in json.dumps(record) for record in records)


def test_only_the_head_of_a_frozen_network_trains(results):
    frozen = results.loc["own: frozen random, 2 a class", "trainable_parameters"]
    assert frozen == 5 * 1024 + 5
    assert results.loc["own: scratch, 2 a class", "trainable_parameters"] > 10 * frozen


def test_all_criteria_are_reported_and_nothing_is_decided_with_one_seed(out):
    criteria = pd.read_csv(out / "criteria.csv")
    assert list(criteria["finding"]) == ["1a", "1a", "1b", "1b"]
    assert set(criteria["verdict"]) <= {"not decided", "fails"}
    report = (out / "report.md").read_text()
    assert "Before any training pretrained features gain" in report
    assert "The report ends here" not in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "[4]"], "--sizes"),
        (["--own-sizes", "[2,100000]"], "100000"),
        (["--own-target", "['5','x']"], "unknown class 'x'"),
        (["--own-target", "['4','5']"], "must not share classes"),
        (["--own-backbone", "resnet81"], "did you mean resnet18"),
        (["--backbones", "[efficientnet_lite9]"], "did you mean efficientnet_lite"),
        (["--weights", "none"], "--weights none"),
        (["--scratch-learning-rates", "[0.1,0.2]"], "--scratch-learning-rates names 2"),
    ],
)
def test_what_cannot_be_is_one_line_before_the_first_trial(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
