"""The study of speed: one tiny real run, what each arm does, the target, the criteria; wrong settings in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from experiment import load as load_script

from tl_lightning.study.cli import main, parse

ROOT = Path(__file__).parents[2]
TINY = [
    *("--data", "digits", "--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", "32"),
    *("--smallest-side", "16", "--samples-per-class", "2", "--max-val-samples", "20", "--max-test-samples", "20"),
    *("--batch-size", "10", "--epochs", "2", "--scratch-factor", "2", "--seeds", "1", "--learning-rates", "0.01"),
    *("--scratch-learning-rates", "0.01", "--jobs", "1", "--gpus", "0"),
]


def load():
    return load_script("speedup")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The output folder of a tiny run in which every trial ended well."""
    out = tmp_path_factory.mktemp("speedup")
    with pytest.raises(SystemExit) as end:
        main(load().STUDY, [*TINY, "--out", str(out)])
    assert end.value.code == 0
    return out


@pytest.fixture(scope="module")
def results(finished) -> pd.DataFrame:
    return pd.read_csv(finished / "results.csv").set_index("arm")


def test_every_arm_ends_well_and_compiling_is_asked_for(results):
    module = load()
    assert set(results.index) == set(module.ARMS) - {"torch.compile"}
    asked = parse(module.STUDY, [*TINY, "--compile"])
    assert {arm.name for arm in module.arms(asked)} == set(module.ARMS)


def test_each_arm_does_what_its_name_says(results):
    assert results.loc["mixed precision", "precision"] == "bf16-mixed"
    assert set(results.drop(index="mixed precision")["precision"]) == {"32-true"}
    few = results["max_trainable_parameters"]
    assert few["head only"] < few["lower half frozen"] < few["plain fine-tuning"]
    assert few["gradual unfreezing"] == few["plain fine-tuning"]
    assert results.loc["from scratch", "optimizer_steps"] == 2 * results.loc["plain fine-tuning", "optimizer_steps"]
    assert results.loc["head only", "step_flops_ratio"] < results.loc["lower half frozen", "step_flops_ratio"] < 1
    small = results.loc["progressive resizing", "forward_flops"] / results.loc["plain fine-tuning", "forward_flops"]
    assert 0.2 < small < 0.6  # the first epoch has half the side


def test_cached_arms_pay_for_their_own_features_and_no_other_caches(results):
    cached = results["extraction_seconds"] > 0
    assert set(results.index[cached]) == {"lower half frozen, cached", "head only, cached", "together, cached"}


def test_the_clock_is_in_every_curve(finished):
    for path in finished.glob("trials/*/record.json"):
        seconds = [row["time/train_seconds"] for row in json.loads(path.read_text())["curve"]]
        assert len(seconds) in (2, 4)
        assert seconds == sorted(seconds)
        assert seconds[0] > 0


def test_the_report_says_the_target_and_who_reached_it(finished):
    report = (finished / "report.md").read_text()
    curve = next(finished.glob("trials/plain-fine-tuning--seed0/record.json"))
    final = json.loads(curve.read_text())["curve"][-1]["val/accuracy"]
    assert f"{final - 0.02:.3f} (seed 0)" in report
    assert "1 (the reference)" in report
    for name in ("time_to_target", "accuracy_by_time", "differences"):
        assert (finished / f"{name}.png").stat().st_size > 0


def test_the_criteria_are_reported(finished):
    criteria = pd.read_csv(finished / "criteria.csv")
    assert list(criteria["finding"]) == ["6a", "6b", "6b", "6c"]
    assert set(criteria["verdict"]) <= {"holds", "fails", "not decided"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--smallest-side", "64"], "--smallest-side must lie between 8 and --image-size 32"),
        (["--scratch-learning-rates", "[0.1, 0.01]"], "every arm is tuned alike"),
        (["--scratch-factor", "0"], "--scratch-factor must be at least 1"),
        (["--target-margin", "-1"], "--target-margin"),
        (["--data", "elvp"], "did you mean elpv"),
    ],
)
def test_what_no_trial_could_run_is_one_line_before_the_first(arguments, message, tmp_path, capsys):
    _refused(arguments, message, tmp_path, capsys)


def test_compiling_without_a_compiler_is_one_line_before_the_first_trial(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler++")
    _refused(["--compile"], "torch.compile needs a C++ compiler", tmp_path, capsys)


def _refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(load().STUDY, [*TINY, *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
