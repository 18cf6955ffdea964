"""The fine-tuning study through its command: sizes, two phases, corrupted tests, criteria."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from experiment import load_study

from tl_lightning.study.cli import main

ROOT = Path(__file__).parents[2]
TINY = [
    *("--data", "digits", "--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", "32"),
    *("--sizes", "[2,4]", "--corruptions", "[gaussian_noise,contrast]", "--max-val-samples", "20"),
    *("--max-test-samples", "20", "--batch-size", "20", "--epochs", "2", "--seeds", "2", "--jobs", "1", "--gpus", "0"),
    *("--learning-rates", "[0.001,0.01]", "--probe-passes", "2"),
]


def run(out: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(load_study("fine_tuning"), [*TINY, *arguments, "--out", str(out)])
    return end.value.code


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A real run, tiny: its output folder."""
    out = tmp_path_factory.mktemp("fine_tuning")
    assert run(out) == 0
    return out


@pytest.fixture(scope="module")
def results(ended):
    return pd.read_csv(ended / "results.csv")


def test_every_method_runs_at_every_size_with_as_many_steps_and_learning_rates(results):
    assert results.groupby("samples_per_class")["method"].nunique().tolist() == [4, 4]
    tuned = results[results["method"].isin(["all layers", "top layers"])]
    assert tuned["optimizer_steps"].nunique() == 1
    assert results["learning_rates_tried"].unique().tolist() == [2]
    assert results.groupby("samples_per_class")["train_images"].unique().map(list).tolist() == [[20], [40]]


def test_the_probe_has_its_own_rates_and_passes_and_trains_the_head_alone(results):
    probe, full = (results[results["method"] == method] for method in ("linear probe", "all layers"))
    assert set(probe["learning_rate"]) <= {0.01, 0.1}
    assert set(full["learning_rate"]) <= {0.001, 0.01}
    assert (probe["optimizer_steps"].to_numpy() == 2 * full["optimizer_steps"].to_numpy()).all()
    assert (probe["trainable_parameters"] < full["trainable_parameters"].min()).all()


def test_lp_ft_starts_from_the_probe_and_pays_for_it(results, ended):
    both = results[results["method"] == "LP-FT"].set_index(["samples_per_class", "seed"])
    probe = results[results["method"] == "linear probe"].set_index(["samples_per_class", "seed"])
    full = results[results["method"] == "all layers"].set_index(["samples_per_class", "seed"])
    assert (both["probe_val_accuracy"] == probe["val_accuracy"]).all()
    assert (both["probe_learning_rate"] == probe["learning_rate"]).all()
    assert (both["optimizer_steps"] == probe["optimizer_steps"] + full["optimizer_steps"]).all()
    assert (both["train_seconds"] > both["probe_train_seconds"]).all()
    assert (both["probe_train_seconds"] > both["extraction_seconds"]).all()
    assert (both["extraction_seconds"] > 0).all()
    assert (probe["extraction_seconds"] > 0).all()
    record = json.loads(next(ended.glob("trials/LP-FT*seed0/*.json")).read_text())
    first = json.loads(next(ended.glob("trials/all-layers*seed0/*.json")).read_text())
    assert record["curve"][0]["train/loss"] != first["curve"][0]["train/loss"]


def test_accuracy_out_of_distribution_is_the_mean_over_the_corruptions(results):
    mean = results[["gaussian_noise_accuracy", "contrast_accuracy"]].mean(axis=1)
    assert results["test_ood_accuracy"].to_numpy() == pytest.approx(mean.to_numpy())
    losses = results[["test_loss", "gaussian_noise_loss", "contrast_loss"]]
    assert (losses.nunique(axis=1) == 3).any()  # three sets of images; so tiny a training may ignore what it sees


def test_each_criterion_is_evaluated_and_the_report_shows_the_figures(ended):
    criteria = pd.read_csv(ended / "criteria.csv")
    assert criteria["finding"].tolist() == ["2a", "2a", "2b", "2b", "2b"]
    assert set(criteria["verdict"]) <= {"holds", "fails", "not decided"}
    for name in ("accuracy_by_size", "corrupted_accuracy_by_size", "gains_by_size", "accuracy_by_time"):
        assert (ended / f"{name}.png").stat().st_size > 0
        assert f"{name}.png" in (ended / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "[4]"], "--sizes must be at least two different numbers"),
        (["--sizes", "[4,4]"], "--sizes must be at least two different numbers"),
        (["--sizes", "[4,100000]"], "100000"),
        (["--corruptions", "[gausian_noise]"], "did you mean gaussian_noise"),
        (["--corruptions", "[saturate]"], "changes nothing in the grey images"),
        (["--severity", "6"], "severity must be 1, 2, 3, 4 or 5"),
        (["--top-stages", "1"], "--top-stages must be 2 to"),
        (["--head-rate-factor", "0"], "--head-rate-factor above 0"),
    ],
)
def test_what_no_trial_could_run_is_one_line_before_the_first(arguments, message, tmp_path, capsys):
    assert run(tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
