"""The study of explanations through its public command, tiny."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from experiment import load_study

from tl_lightning.study.arrays import load_arrays
from tl_lightning.study.cli import main

PATH = Path(__file__).parents[2] / "experiments" / "interpretability.py"
TINY = [
    *("--data", "digits", "--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", "64"),
    *("--samples-per-class", "8", "--max-val-samples", "40", "--max-test-samples", "20", "--batch-size", "16"),
    *(
        "--epochs",
        "2",
        "--scratch-epochs",
        "2",
        "--seeds",
        "2",
        "--learning-rates",
        "0.01",
        "--jobs",
        "1",
        "--gpus",
        "0",
    ),
    *("--scratch-learning-rates", "0.01", "--explained-images", "40", "--panel-images", "3", "--cascade-steps", "2"),
    *("--grids", "4", "--road-images", "1", "--visualised-channels", "2", "--visualisation-steps", "2"),
]


def study():
    return load_study("interpretability")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpretability")
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, "--out", str(folder)])
    assert end.value.code == 0
    return folder


def records(out):
    return [json.loads(path.read_text()) for path in sorted(out.glob("trials/*/record.json"))]


def test_every_criterion_is_evaluated(out):
    criteria = pd.read_csv(out / "criteria.csv")
    assert criteria["finding"].tolist() == ["9a", "9b", "9b", "9c", "9c"]
    assert set(criteria["verdict"]) <= {"holds", "fails", "not decided"}
    measured = criteria[criteria["finding"] != "9c"]  # the tiny network may be right about a single class
    assert (measured["n"] == 2).all()
    assert measured["effect"].notna().all()


def test_records_hold_each_stage_before_and_after(out):
    by_arm = {}
    for record in records(out):
        assert record["status"] == "ok", record["error"]
        by_arm.setdefault(record["arm"], []).append(record)
    assert set(by_arm) == {"fine-tuned", "linear probe", "from scratch"}
    for record in by_arm["linear probe"]:
        body = record["stages"][:-1]
        assert all(row["drift"] == 0 and row["cka_before"] == pytest.approx(1) for row in body)
        assert record["stages"][-1]["drift"] > 0
    for record in by_arm["fine-tuned"] + by_arm["from scratch"]:
        assert all(row["drift"] > 0 for row in record["stages"])
        assert all(-1 <= row["cka_twin"] < 1 for row in record["stages"][:-1])
    assert all(len(record["cascade"]) == 2 for record in by_arm["fine-tuned"])


def test_pictures_of_the_first_seed_are_shown_and_in_tensorboard(out):
    shown = ["gradcam_over_time", "gradcam_by_arm", "cka_by_stage", "drift_by_stage", "sanity_check", "sanity_maps"]
    report = (out / "report.md").read_text()
    for name in [*shown, "features_1", "features_2", "features_3"]:
        assert (out / f"{name}.png").stat().st_size > 5000
        assert f"({name}.png)" in report
    panel = load_arrays(out / "trials" / "fine-tuned--seed0", "panels")
    assert panel["titles"].tolist() == ["before training", "after 1 epoch", "after training"]
    assert np.abs(panel["probabilities"][0] - panel["probabilities"][-1]).max() > 1e-3
    assert load_arrays(out / "trials" / "fine-tuned--seed1", "panels") is None
    events = list((out / "trials" / "fine-tuned--seed0").rglob("events.out.tfevents.*"))
    assert any(b"gradcam/over_time" in path.read_bytes() for path in events)
    assert all(path.stat().st_size < 1_000_000 for path in events)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-layer", "stage44"], "did you mean stage4"),
        (["--target-layer", "fc"], "not maps"),
        (["--panel-images", "17"], "--panel-images must be at most 16"),
        (["--explained-images", "7"], "--explained-images must be at least 8"),
        (["--grids", "-1"], "--grids must be at least 0"),
        (["--scratch-learning-rates", "[0.1, 0.2]"], "--scratch-learning-rates"),
        (["--scratch-epochs", "0"], "--scratch-epochs must be at least 1"),
        (["--backbone", "vit_b_32", "--image-size", "224"], "--grids 0"),
    ],
)
def test_what_no_trial_could_run_is_one_line_before_the_first(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
