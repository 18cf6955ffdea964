"""The study of domain similarity: one tiny real run, its scores and criteria; wrong settings in one line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from experiment import load as load_script

from tl_lightning.study.cli import main

ROOT = Path(__file__).parents[2]
TINY = [
    *("--targets", '["digits:invert", "scene_digits"]', "--train_images", "20", "--sizes", "[2]"),
    *("--sizes-target", "digits", "--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", "32"),
    *("--near-far", '["digits = 0,1 -> 2,3", "digits:invert = 0,1 -> 2,3"]', "--near-far-epochs", "1"),
    *("--near-far-backbone", "shufflenet_v2_x0_5", "--near-far-images", "8", "--source-images", "digits:fog:3"),
    *("--max-val-samples", "20", "--max-test-samples", "20", "--batch-size", "10", "--epochs", "1"),
    *("--learning-rates", "0.003", "--seeds", "1", "--jobs", "1", "--gpus", "0"),
]


def load():
    return load_script("domain_similarity")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The output folder of a tiny run in which every trial ended well."""
    out = tmp_path_factory.mktemp("domain_similarity")
    with pytest.raises(SystemExit) as end:
        main(load().STUDY, [*TINY, "--out", str(out)])
    assert end.value.code == 0
    return out


def test_every_arm_has_its_target_and_its_test_set(finished) -> None:
    results = pd.read_csv(finished / "results.csv")
    assert len(results) == 2 * 3 + 2 + 8
    assert set(results["status"]) == {"ok"}
    main_part = results[results["part"] == "targets"]
    assert set(main_part["data"]) == {"digits:invert", "scene_digits"}
    assert main_part.groupby("target")["test_fingerprint"].nunique().eq(1).all()
    assert main_part["test_fingerprint"].nunique() == 2
    assert results["test_above_chance"].between(-1, 1).all()


def test_the_scores_are_those_of_the_linear_probes(finished) -> None:
    results = pd.read_csv(finished / "results.csv")
    probes = results[(results["method"] == "linear probe") & (results["part"] == "targets")]
    for name in ("frechet_bn", "frechet_images", "a_distance", "cka_random", "logme", "nleep", "h", "knn"):
        assert probes[f"score_{name}"].notna().all(), name
    assert results.loc[results["method"] == "scratch", "score_logme"].isna().all()
    assert results.loc[results["method"] == "fine-tuned", "score_cka_tuned"].notna().sum() == 2


def test_networks_of_ones_own_are_pretrained_once_a_domain(finished) -> None:
    results = pd.read_csv(finished / "results.csv")
    crossed = results[results["part"] == "near and far"]
    assert len(list(finished.rglob("weights.pt"))) == 2
    assert crossed["weights"].nunique() == 2
    assert crossed.groupby("to")["test_fingerprint"].nunique().eq(1).all()
    assert set(crossed.loc[crossed["near"], "source"] + crossed.loc[crossed["near"], "to"]) == {"AA", "BB"}


def test_every_criterion_is_there_and_none_is_decided_by_one_seed(finished) -> None:
    criteria = pd.read_csv(finished / "criteria.csv")
    assert criteria["finding"].tolist() == ["5c", "5c", "5a", "5a", "5b", "5b"]
    assert set(criteria["verdict"]) == {"not decided"}
    report = (finished / "report.md").read_text()
    assert "## Gain by target" in report
    assert "Near minus far" in report
    assert "The report ends here" not in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", '["digitz"]'], "did you mean digits"),
        (["--targets", '["digits:invertt"]'], "did you mean invert"),
        (["--targets", '["./nowhere"]'], "no folder ./nowhere"),
        (["--targets", "[]", "--sizes", "[]", "--near-far", "[]"], "nothing to train"),
        (["--data", "cifar10"], "--targets"),
        (["--samples-per-class", "5"], "--train-images"),
        (["--near-far", '["digits = 0,1 -> 2,3"]'], "two domains"),
        (["--near-far", '["digits 0,1", "digits 2,3"]'], "must be written"),
        (["--near-far", '["digits = 0,1 -> 2,x", "digits = 0,1 -> 2,3"]'], "class"),
        (["--sizes", "[5000]"], "5000"),
        (["--near-far-backbone", "resnet81"], "resnet18"),
    ],
)
def test_what_no_trial_could_run_is_one_line_before_the_first(arguments, message, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(load().STUDY, [*TINY, *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_the_published_split_alone_is_a_study(tmp_path) -> None:
    """Mirrored images of another size, and no word of the parts that were not asked for."""
    alone = ["--targets", "[]", "--sizes", "[]", "--near-far", "[]", "--source-images", "null"]
    published = ["--published-epochs", "1", "--published-size", "32", "--published-flips"]
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(load().STUDY, [*TINY, *alone, *published, "--image-size", "64", "--out", str(out)])
    assert end.value.code == 0
    record = pd.read_csv(out / "results.csv").iloc[0]
    assert (record["arm"], record["image_size"]) == ("elpv as published", 32)
    assert record["train_images"] > 1500
    assert pd.read_csv(out / "criteria.csv")["finding"].tolist() == ["5b"]
