"""Every study through its public command: a smoke run, a repeated run, wrong commands."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tl_lightning.study.cli import main

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path for path in (ROOT / "experiments").glob("*.py") if path.stem != "findings")
TINY = [
    *("--data", "digits", "--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", "32"),
    *("--samples-per-class", "4", "--max-val-samples", "20", "--max-test-samples", "20", "--batch-size", "8"),
    *("--epochs", "2", "--seeds", "1", "--learning-rates", "0.01", "--jobs", "1", "--gpus", "0"),
]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module of their class
    spec.loader.exec_module(module)
    return module


def command(path: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_smoke_run_leaves_everything(path, tmp_path):
    first = command(path, "--smoke", "--out", str(tmp_path))
    assert first.returncode == 0, first.stderr
    for name in ("results.csv", "summary.csv", "report.md", "study.json", "criteria.csv"):
        assert (tmp_path / name).stat().st_size > 0
    assert list(tmp_path.glob("*.png"))
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    results = pd.read_csv(tmp_path / "results.csv")
    assert set(results["status"]) == {"ok"}
    if path.stem == "freezing":
        second = command(path, "--smoke", "--out", str(tmp_path))
        assert second.returncode == 0, second.stderr
        assert "[1/" not in second.stderr
        assert pd.read_csv(tmp_path / "results.csv").equals(results)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_help_and_a_wrong_argument_answer_through_the_command(path):
    assert "--image-size" in command(path, "--help").stdout
    wrong = command(path, "--epocs", "3")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: unknown argument --epocs; did you mean --epochs?\n"


OWN = [
    *("--own-backbone", "shufflenet_v2_x0_5", "--own-epochs", "1", "--own-target-epochs", "1", "--own-samples", "4"),
    *("--own-corrupted", "8", "--own-learning-rates", "0.01"),
]


@pytest.fixture(scope="module")
def freezing(tmp_path_factory):
    """A real freezing study, tiny: its exit code and its output folder."""
    out = tmp_path_factory.mktemp("freezing")
    with pytest.raises(SystemExit) as end:
        main(load(ROOT / "experiments" / "freezing.py").STUDY, [*TINY, *OWN, "--out", str(out)])
    return end.value.code, out


def test_a_study_ends_with_a_row_for_each_trial(freezing):
    code, out = freezing
    results = pd.read_csv(out / "results.csv")
    assert code == 0
    assert set(results["status"]) == {"ok"}
    assert results["part"].value_counts().to_dict() == {
        **{"depth": 8, "other classes": 10, "corrupted input": 3},
        "linear heads": 5,
    }
    contract = "study arm seed data backbone weights image_size epochs learning_rate val_accuracy test_accuracy"
    contract += " train_seconds images_per_second peak_memory_mb trainable_parameters total_parameters forward_flops"
    contract += " device precision versions git_commit status error"
    assert set(contract.split()) <= set(results.columns)


def test_deeper_freezing_trains_fewer_parameters(freezing):
    results = pd.read_csv(freezing[1] / "results.csv")
    fixed = results[(results["progressive"] == False) & (results["lr_decay"] == 1)].sort_values("frozen_stages")  # noqa: E712
    assert fixed["trainable_parameters"].is_monotonic_decreasing
    assert fixed["trainable_parameters"].nunique() == len(fixed)
    assert fixed["test_fingerprint"].nunique() == 1


def test_kept_stages_and_the_first_block_train_what_they_say(freezing):
    results = pd.read_csv(freezing[1] / "results.csv").set_index("arm")
    other, same = (results[results.index.str.startswith(f"{source} classes")] for source in ("other", "same"))
    assert other["trainable_parameters"].tolist() == same["trainable_parameters"].tolist()
    assert other["trainable_parameters"].is_monotonic_decreasing
    assert results.loc["corrupted: first block only", "trainable_parameters"] < 10_000
    assert results.loc["corrupted: nothing frozen", "trainable_parameters"] > 300_000
    assert results.loc["corrupted: head only", "trainable_parameters"] == 1024 * 10 + 10
    assert set(results.loc[["corrupted: head only"], "test_fingerprint"]) != {results["test_fingerprint"].iloc[0]}


def test_linear_heads_read_every_depth_and_train_nothing_else(freezing):
    results = pd.read_csv(freezing[1] / "results.csv")
    heads = results[results["part"] == "linear heads"]
    assert heads["frozen_stages"].tolist() == [1, 2, 3, 4, 5]
    assert (heads["trainable_parameters"] == 10 * (heads["features"] + 1)).all()
    assert heads["features"].nunique() > 1
    fine_tuned = results.loc[results["arm"] == "nothing frozen"].iloc[0]
    assert set(heads["test_fingerprint"]) == {fine_tuned["test_fingerprint"]}
    assert set(heads["data_fingerprint"]) == {fine_tuned["data_fingerprint"]}


def test_the_criteria_are_reported(freezing):
    criteria = pd.read_csv(freezing[1] / "criteria.csv")
    assert set(criteria["finding"]) == {"8a", "8c", "6b"}
    assert set(criteria["verdict"]) <= {"holds", "fails", "not decided"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "resnet81"], "did you mean resnet18"),
        (["--data", "elvp"], "did you mean elpv"),
        (["--weights", "IMAGENET1K_V9"], "IMAGENET1K_V1"),
        (["--data", "imagefolder"], "--data-dir"),
        (["--data", "imagefolder", "--data-dir", "/nowhere"], "/nowhere"),
        (["--samples-per-class", "100000"], "100000"),
        (["--backbone", "vit_b_16", "--image-size", "33"], "33"),
        (["--optimizer", "adamm"], "did you mean adamw"),
    ],
)
def test_what_no_trial_could_run_is_one_line_before_the_first(arguments, message, tmp_path, capsys):
    study = load(ROOT / "experiments" / "freezing.py").STUDY
    with pytest.raises(SystemExit) as end:
        main(study, [*TINY, *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit) as end:
        main(load(ROOT / "experiments" / "freezing.py").STUDY, [*TINY, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
