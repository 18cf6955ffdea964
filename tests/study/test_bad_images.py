"""A damaged image among one's own: named before the first trial, or left out and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tl_lightning import study
from tl_lightning.study.cli import main
from tl_lightning.study.design import Arm, Study

STUDY = Study(
    "bad_images",
    "Does a damaged image matter?",
    "",
    lambda settings: [Arm("all")],
    study.train_and_test,
    lambda report: None,
    check=study.check_training,
)


@pytest.fixture
def command(tmp_path) -> list[str]:
    """A study of an image folder that holds a JPEG without its end."""
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    whole = (tmp_path / "images" / "left" / "3.jpg").read_bytes()
    (tmp_path / "images" / "left" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    return [
        *("--data", "imagefolder", "--data-dir", str(tmp_path / "images"), "--backbone", "shufflenet_v2_x0_5"),
        *("--weights", "none", "--image-size", "32", "--batch-size", "8", "--epochs", "1", "--seeds", "1"),
        *("--jobs", "1", "--gpus", "0", "--learning-rates", "0.01", "--out", str(tmp_path / "out")),
    ]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(STUDY, arguments)
    return int(end.value.code or 0)


def test_it_is_named_in_one_line_before_the_first_trial(command, tmp_path, capsys):
    assert run(command) == 2
    error = capsys.readouterr().err
    assert "left/3.jpg" in error
    assert "--on-bad-image skip" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_it_is_left_out_counted_and_reported(command, tmp_path):
    assert run([*command, "--on-bad-image", "skip"]) == 0
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(results["skipped_images"]) == {1}
    assert "- skipped_images: 1" in Path(tmp_path / "out" / "report.md").read_text()


def test_another_word_is_refused(command, capsys):
    assert run([*command, "--on-bad-image", "ignore"]) == 2
    assert "on-bad-image" in capsys.readouterr().err
