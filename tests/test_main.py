"""``python -m tl_lightning``: fit, then test and predict from the checkpoint; wrong commands in one line."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from tl_lightning.__main__ import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("fit_*.yaml"))
BACKBONE = ["--model.backbone", "shufflenet_v2_x0_5", "--model.weights", "none"]
CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
DIGITS = [
    *("--data.name", "digits", "--data.image_size", "32", "--data.batch_size", "16", "--model.lr", "0.01"),
    *("--data.samples_per_class", "40", "--data.val_samples", "60", "--data.test_samples", "50"),
]
SCENES = [
    *("--data.image_size", "64", "--data.train_images", "16", "--data.val_images", "4", "--data.test_images", "4"),
    *("--data.batch_size", "4"),
]


def run(*arguments: str) -> None:
    main(list(arguments))


def fitted(folder: Path, *arguments: str) -> Path:
    """Fit in a folder and return the best checkpoint."""
    run("fit", *BACKBONE, *CPU, "--trainer.default_root_dir", str(folder), *arguments)
    return folder / "fit" / "version_0" / "checkpoints" / "best.ckpt"


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The checkpoint of a classifier of handwritten digits."""
    config = tmp_path_factory.mktemp("config") / "callbacks.yaml"
    callbacks = [
        {"class_path": "ProgressiveUnfreezing", "init_args": {"schedule": {0: "head", 1: "none"}}},
        {"class_path": "FreezeAudit"},
    ]
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    epochs = ["--trainer.max_epochs", "8"]
    return fitted(tmp_path_factory.mktemp("digits"), "--config", str(config), *DIGITS, *epochs)


def test_a_fit_leaves_the_best_checkpoint_its_settings_and_curves(digits):
    version = digits.parents[1]
    assert {path.name for path in digits.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(version.glob("events.out.tfevents.*"))
    settings = yaml.safe_load((version / "config.yaml").read_text())
    assert settings["data"]["init_args"]["samples_per_class"] == 40
    content = torch.load(digits, weights_only=True)
    best = next(state for name, state in content["callbacks"].items() if name.startswith("ModelCheckpoint"))
    assert best["monitor"] == "val/accuracy"
    assert float(best["best_model_score"]) > 0.5


def test_the_checkpoint_alone_is_tested(digits, capsys):
    run("test", "--ckpt_path", str(digits), *CPU)
    line = next(line for line in capsys.readouterr().out.splitlines() if "test/accuracy" in line)
    assert float(line.split("│")[-2]) > 0.5


def test_the_test_part_is_predicted_by_position(digits, tmp_path):
    output = tmp_path / "predictions.csv"
    run("predict", "--ckpt_path", str(digits), "--output", str(output), *CPU)
    rows = table(output)
    assert list(rows[0]) == ["image", "class", "probability"]
    assert len({row["image"] for row in rows}) == len(rows) == 50
    assert all(0.1 < float(row["probability"]) <= 1 for row in rows)
    truth = load_digits().target
    assert np.mean([int(row["class"]) == truth[int(row["image"])] for row in rows]) > 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def draw_digits(folder: Path, count: int) -> dict[str, int]:
    """Write digits as image files of several formats and sizes, some of them in a folder below."""
    digits = load_digits()
    labels = {}
    for i in range(count):
        path = folder / ("below" if i % 2 else ".") / f"digit {i}.{'png' if i % 3 else 'JPG'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[i] * 15.9).astype(np.uint8)
        Image.fromarray(pixels).resize((32 + i, 32 + i), Image.Resampling.BILINEAR).save(path)
        labels[str(path.resolve())] = int(digits.target[i])
    return labels


def test_a_folder_without_labels_is_predicted(digits, tmp_path):
    labels = draw_digits(tmp_path / "photos", 20)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    output = tmp_path / "out.csv"
    run(
        "predict",
        "--ckpt_path",
        str(digits),
        "--data.predict_dir",
        str(tmp_path / "photos"),
        "--output",
        str(output),
        *CPU,
    )
    found = {str(Path(row["image"]).resolve()): int(row["class"]) for row in table(output)}
    assert found.keys() == labels.keys()
    assert np.mean([found[name] == labels[name] for name in labels]) > 0.5


def test_an_unreadable_image_is_named_or_left_out(digits, tmp_path, capsys):
    draw_digits(tmp_path / "photos", 4)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    command = ["predict", "--ckpt_path", str(digits), "--data.predict_dir", str(tmp_path / "photos"), *CPU]
    assert "broken.jpg" in refused(capsys, *command, "--output", str(tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()
    run(*command, "--output", str(tmp_path / "out.csv"), "--data.on_bad_image", "skip")
    assert len(table(tmp_path / "out.csv")) == 4


def test_boxes_are_predicted_in_pixels_of_the_file(tmp_path):
    checkpoint = fitted(tmp_path, "--model", "DetectionModule", *SCENES, "--trainer.max_epochs", "1")
    Image.new("RGB", (300, 100), "gray").save(tmp_path / "wide.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "wide.png").rename(tmp_path / "photos" / "wide.png")
    output = tmp_path / "predictions.csv"
    run("test", "--ckpt_path", str(checkpoint), *CPU)
    run("predict", "--ckpt_path", str(checkpoint), "--output", str(output), *CPU)
    columns = output.read_text().splitlines()[0]
    assert columns == "image,class,score,x1,y1,x2,y2"
    assert 1 <= len({int(row["image"]) for row in table(output)}) <= 4
    whole = boxes_by_hand(checkpoint, tmp_path / "photos" / "wide.png")
    run(
        "predict",
        "--ckpt_path",
        str(checkpoint),
        "--data.predict_dir",
        str(tmp_path / "photos"),
        "--output",
        str(output),
        *CPU,
    )
    found = [[float(row[side]) for side in ("x1", "y1", "x2", "y2")] for row in table(output)]
    np.testing.assert_allclose(found, whole, atol=0.02)


def boxes_by_hand(checkpoint: Path, path: Path) -> list[list[float]]:
    """Return the boxes that the module itself finds, by hand: resized to 64 px, boxes back to the file's pixels."""
    from tl_lightning import DetectionModule

    module = DetectionModule.load_from_checkpoint(checkpoint, weights="none").eval()
    image = Image.open(path)
    pixels = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    with torch.no_grad():
        boxes = module(torch.from_numpy(pixels).float()[None])[0]["boxes"]
    return (boxes * torch.tensor([image.width / 64, image.height / 64] * 2)).tolist()


def test_masks_are_predicted_in_the_size_of_the_file(tmp_path, capsys):
    checkpoint = fitted(tmp_path, "--model", "SegmentationModule", *SCENES, "--trainer.max_epochs", "1")
    photos = tmp_path / "photos" / "below"
    photos.mkdir(parents=True)
    for name, size in (("a.png", (90, 70)), ("a.jpg", (80, 60)), ("b.png", (50, 40))):
        Image.new("RGB", size, "white").save(photos / name)
    Image.new("RGB", (50, 40), "white").save(os.fsencode(photos) + b"/caf\xe9.png", format="PNG")
    output = tmp_path / "found.csv"
    predict = ("predict", "--ckpt_path", str(checkpoint), "--data.predict_dir", str(tmp_path / "photos"), *CPU)
    run(*predict, "--output", str(output))
    rows = table(output)
    assert [Path(row["mask"]).name for row in rows] == ["a.jpg.png", "a.png.png", "b.png", r"caf\udce9.png"]
    for row in rows[:3]:
        with Image.open(row["mask"]) as mask, Image.open(row["image"]) as image:
            assert mask.size == image.size
            assert np.asarray(mask).max() <= 10  # ten digits and the background
    assert "among the images" in refused(capsys, *predict, "--output", str(photos.with_suffix(".csv")))
    assert Image.open(photos / "b.png").mode == "RGB"


def refused(capsys, *arguments: str) -> str:
    """Return the one line with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fti"], "did you mean fit?"),
        (["fit", "--model.lrr", "3"], "lrr"),
        (["fit", "--model.lr", "abc"], "lr: Expected a float"),
        (["fit", "--model.backbone", "resnet81"], "did you mean resnet18"),
        (["fit", "--model", "NoModule"], "NoModule"),
        (["fit", "--data.name", "elvp"], "did you mean elpv?"),
        (["fit", "--data", "DenseDataModule"], "--model DetectionModule"),
        (["fit", "--model", "DetectionModule", "--data", "TransferDataModule"], "DenseDataModule"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--trainer.callbacks+=Nonsense"], "Nonsense"),
        (["fit", *DIGITS, "--trainer.accelerator", "foo"], "foo"),
        (["test"], "--ckpt_path"),
        (["predict", "--ckpt_path", "nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
    ],
)
def test_a_wrong_command_is_one_line_and_leaves_nothing(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_picture_is_no_configuration_and_no_checkpoint(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "a.png" in refused(capsys, "test", "--ckpt_path", str(tmp_path / "a.png"))
    refused(capsys, "fit", "--config", str(tmp_path / "a.png"))


def test_other_classes_another_model_or_no_images_are_refused(digits, tmp_path, capsys):
    command = ["--ckpt_path", str(digits), *CPU]
    assert "knows the classes 0, 1, 2" in refused(capsys, "validate", *command, "--data.classes", '["1", "0"]')
    assert "does not fit" in refused(capsys, "test", *command, "--model.backbone", "mobilenet_v3_small")
    assert "holds no images" in refused(capsys, "predict", *command, "--data.predict_dir", str(tmp_path))
    assert "must end in .csv" in refused(capsys, "predict", *command, "--output", str(tmp_path / "a.txt"))
    assert "there is no folder" in refused(capsys, "predict", *command, "--output", str(tmp_path / "no" / "a.csv"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_what_its_classes_take(path, capsys):
    with pytest.raises(SystemExit) as end:
        run("fit", "--config", str(path), "--print_config")
    assert end.value.code == 0
    read = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(path.read_text())
    for part in ("model", "data"):
        assert given[part]["init_args"].items() <= read[part]["init_args"].items()
    for wanted, found in zip(given["trainer"]["callbacks"], read["trainer"]["callbacks"], strict=True):
        assert wanted["class_path"] == found["class_path"]
        assert wanted.get("init_args", {}).keys() <= found["init_args"].keys()


def test_help_answers_at_once_and_names_the_commands():
    command = [sys.executable, "-X", "importtime", "-m", "tl_lightning", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "tl_lightning" in imported
    assert "torch" not in imported  # it would take seconds
    for command in ("fit", "validate", "test", "predict"):
        assert f"\n  {command}" in found.stdout


def test_help_of_a_command_lists_its_flags(capsys):
    with pytest.raises(SystemExit) as end:
        run("predict", "--help")
    assert end.value.code == 0
    assert "--output" in capsys.readouterr().out
