"""The study of model sizes: one tiny real run, its costs and criteria; wrong networks in one line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from experiment import load_study

from tl_lightning.study.cli import main

ROOT = Path(__file__).parents[2]
TINY = [
    *("--data", "digits", "--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "8"),
    *("--backbones", "[shufflenet_v2_x0_5, shufflenet_v2_x1_0]", "--cost-backbones", "[mobilenet_v2, resnet18]"),
    *("--samples-per-class", "2", "--max-val-samples", "20", "--max-test-samples", "20", "--latency-repeats", "1"),
    *("--seeds", "1", "--learning-rates", "0.01", "--jobs", "1", "--gpus", "0"),
]


def study():
    return load_study("model_size")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The output folder of a tiny run in which every trial ended well."""
    out = tmp_path_factory.mktemp("model_size")
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, "--out", str(out)])
    assert end.value.code == 0
    return out


@pytest.fixture(scope="module")
def results(finished) -> pd.DataFrame:
    return pd.read_csv(finished / "results.csv").set_index("arm")


def test_every_network_is_trained_both_ways_and_two_are_only_measured(results):
    assert len(results) == 6
    assert results["test_accuracy"].notna().sum() == 4
    only = results[results["method"] == "cost only"]
    assert set(only["network"]) == {"mobilenet_v2", "resnet18"}
    assert only["test_accuracy"].isna().all()
    assert only["train_seconds"].isna().all()


def test_the_published_sizes_are_measured(results):
    published = results[["published_gmacs", "published_parameters"]].dropna()
    assert published.loc["mobilenet_v2, cost only", "published_gmacs"] == pytest.approx(0.30, abs=0.01)
    assert published.loc["resnet18, cost only", "published_gmacs"] == pytest.approx(1.81, abs=0.01)
    assert published.loc["mobilenet_v2, cost only", "published_parameters"] == pytest.approx(3.5e6, rel=0.01)
    assert published.loc["resnet18, cost only", "published_parameters"] == pytest.approx(11.7e6, rel=0.01)


def test_every_arm_has_its_costs_in_use(results):
    for column in ("latency_ms", "throughput", "gmacs", "total_parameters"):
        assert results[column].notna().all(), column
    whole = results["method"] != "linear probe"
    for column in ("training_step_ms", "step_memory_mb"):
        assert results[column].notna().tolist() == whole.tolist(), column
    assert (results[["latency_ms", "throughput", "gmacs"]] > 0).all(axis=None)
    small, large = results.loc["shufflenet_v2_x0_5, fine-tuned"], results.loc["shufflenet_v2_x1_0, fine-tuned"]
    assert small["gmacs"] < large["gmacs"]


def test_the_operations_of_a_training_hold_the_one_pass_that_a_linear_probe_needs(results):
    probe, tuned = (results.loc[f"shufflenet_v2_x1_0, {m}"] for m in ("linear probe", "fine-tuned"))
    head = 2 * 1024 * 10  # of an image; its gradient with respect to the weights costs as much again
    assert probe["training_flops"] == pytest.approx(20 * (2e9 * probe["gmacs"] + 2 * head), rel=1e-3)
    assert 2.5 < tuned["training_flops"] / (20 * 2e9 * tuned["gmacs"]) < 3.1  # forward and two backward passes


def test_the_criteria_are_reported(finished):
    criteria = pd.read_csv(finished / "criteria.csv").set_index("finding")
    assert set(criteria.index) == {"3a", "3b"}
    assert set(criteria["verdict"]) == {"not decided"}  # one seed decides nothing
    assert "ratio 6.0" in criteria.loc["3b", "note"]
    assert "M parameters (ratio 3.3" in criteria.loc["3b", "note"]
    assert "below 2 points" in criteria.loc["3a", "rule"]


def test_the_report_has_the_pareto_figures(finished):
    for name in ("accuracy_by_size", "pareto_latency", "pareto_time", "pareto_energy", "costs"):
        assert (finished / f"{name}.png").stat().st_size > 0
        assert f"{name}.png" in (finished / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones", "[resnet81]"], "did you mean resnet18"),
        (["--cost-backbones", "[resnet81]"], "did you mean resnet18"),
        (["--backbones", "[]"], "at least one network"),
        (["--backbones", "[resnet18, resnet18]"], "named twice"),
        (["--backbone", "resnet50"], "name the networks with --backbones"),
        (["--weights", "IMAGENET1K_V9"], "IMAGENET1K_V1"),
        (["--latency-repeats", "0"], "--latency-repeats must be at least 1"),
        (["--cost-backbones", "[vit_b_16]"], "224 pixels only"),
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
