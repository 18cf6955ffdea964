"""What is special about the study of tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from experiment import load_study
from PIL import Image

from tl_lightning.study import read_dense_examples
from tl_lightning.study.cli import main

SCRIPT = Path(__file__).parents[2] / "experiments" / "tasks.py"
SIZE = (48, 64)  # height and width of the files below
TINY = [
    *("--backbone", "efficientnet_lite0", "--data", "digits", "--image-size", "32", "--sizes", "[10,20]"),
    *("--max-val-samples", "6", "--max-test-samples", "6", "--batch-size", "10", "--epochs", "1"),
    *("--learning-rates", "0.01", "--seeds", "1", "--jobs", "1", "--gpus", "0"),
]


def study():
    return load_study("tasks")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The output folder of a real run of all three tasks, tiny."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, "--out", str(folder)])
    assert end.value.code == 0
    return folder


@pytest.fixture(scope="module")
def results(out):
    """The results by task, start, images and schedule."""
    return pd.read_csv(out / "results.csv").set_index(["task", "start", "images", "schedule"]).sort_index()


def test_every_task_has_both_starts_at_every_size_and_the_dense_ones_the_longer_schedule(results):
    expected = {(task, start, n, 1) for task in TASKS for start in STARTS for n in (10, 20)}
    expected |= {(task, start, 20, 4) for task in ("detection", "segmentation") for start in STARTS}
    assert set(results.index) == expected
    assert set(results["status"]) == {"ok"}
    assert (results["train_images"] == results.index.get_level_values("images")).all()


TASKS, STARTS = ("classification", "detection", "segmentation"), ("pretrained", "scratch")


def test_every_size_takes_as_many_steps_and_the_longer_schedule_four_times_as_many(results):
    epochs = results["epochs"]
    for task in TASKS:
        assert epochs[task, "scratch", 10, 1] == 2  # of one step
        assert epochs[task, "scratch", 20, 1] == 1  # of two
    assert epochs["detection", "pretrained", 20, 4] == 4
    assert epochs["segmentation", "scratch", 20, 4] == 4


def test_each_task_is_judged_by_its_own_metric_on_its_own_images(results):
    metrics = {"classification": "test_accuracy", "detection": "test_map", "segmentation": "test_miou"}
    for task, metric in metrics.items():
        assert results.loc[task, metric].between(0, 1).all()
        for other in set(metrics.values()) - {metric}:
            assert results.loc[task, other].isna().all()
    assert set(results.loc["classification", "data"]) == {"digits"}
    assert set(results.loc["detection", "data"]) == {"scenes"}
    weights = results.groupby("start")["weights"].unique()
    assert list(weights["scratch"]) == ["none"]
    assert list(weights["pretrained"]) == ["IMAGENET1K_V1"]


def test_the_arms_of_a_size_see_the_same_images(results):
    by_size = results.groupby(["task", "images"])["data_fingerprint"].nunique()
    assert (by_size == 1).all()
    assert (results.groupby("task")["test_fingerprint"].nunique() == 1).all()


def test_the_criterion_is_evaluated_in_both_dense_tasks_and_undecided_with_one_seed(out):
    criteria = pd.read_csv(out / "criteria.csv")
    assert list(criteria["finding"]) == ["4a", "4a"]
    assert criteria["claim"].str.contains("detection").tolist() == [True, False]
    assert set(criteria["verdict"]) == {"not decided"}


def test_the_report_says_that_scenes_are_composed_and_shows_a_figure_of_each_kind(out):
    assert "**composed**" in (out / "report.md").read_text()
    names = [f"{task}_by_images" for task in TASKS] + ["gap_by_images"]
    names += [f"{task}_{kind}" for task in TASKS[1:] for kind in ("curves", "examples")]
    for name in names:
        assert (out / f"{name}.png").stat().st_size > 0


def test_predictions_are_kept_beside_the_images_they_are_of(out):
    boxes = read_dense_examples(out / "trials" / "detection-pretrained-1x-10-images--seed0")
    masks = read_dense_examples(out / "trials" / "segmentation-scratch-4x-20-images--seed0")
    assert boxes.images.shape == masks.images.shape == (4, 3, 32, 32)
    assert np.array_equal(boxes.images, masks.images)
    assert masks.truth.shape == masks.predicted.shape == (4, 32, 32)
    for objects, mask in zip(boxes.truth, masks.truth, strict=True):
        assert set(objects.labels) == set(np.unique(mask)) - {0}  # of the same scene


def picture(seed: int) -> Image.Image:
    """A picture of SIZE, another for each seed."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(SIZE[::-1])


def annotation(name: str, box: tuple[int, int, int, int] = (5, 5, 30, 30), label: str = "cell") -> str:
    """A Pascal VOC annotation of one object."""
    corners = "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></size>"
    return (
        f"<annotation><filename>{name}</filename>{size}<object><name>{label}</name><bndbox>{corners}</bndbox></object>"
        "</annotation>"
    )


@pytest.fixture
def boxes(tmp_path):
    """A Pascal VOC folder of 40 images."""
    root = tmp_path / "voc"
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for k in range(40):
        picture(k).save(root / "JPEGImages" / f"{k:02d}.jpg")
        (root / "Annotations" / f"{k:02d}.xml").write_text(annotation(f"{k:02d}.jpg"))
    return root


@pytest.fixture
def masks(tmp_path):
    """A folder of 40 pairs of image and mask with the classes 0 and 1."""
    root = tmp_path / "pairs"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for k in range(40):
        picture(k).save(root / "images" / f"{k:02d}.jpg")
        write_mask(root, k, np.arange(SIZE[1]) > k)
    return root


def write_mask(root: Path, number: int, columns: np.ndarray, height: int = SIZE[0]) -> None:
    """Write a mask of columns."""
    Image.fromarray(np.tile(columns.astype(np.uint8), (height, 1))).save(root / "masks" / f"{number:02d}.png")


def refusal(arguments: list[str], tmp_path: Path, capsys) -> str:
    """Run the command, which must end at once with one line, and return it."""
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    return error


def on_all(folder: Path, names: str, change) -> None:
    """Change every file of a pattern: whichever subset a seed draws, a bad one is in it."""
    for path in sorted(folder.glob(names)):
        change(path)


BAD_BOXES = {
    "broken": (lambda path: path.write_text("<annotation><object>"), "is broken"),
    "no box": (lambda path: path.write_text(annotation(f"{path.stem}.jpg").replace("xmin>", "x>")), "has no bndbox"),
    "outside": (lambda path: path.write_text(annotation(f"{path.stem}.jpg", (5, 5, 65, 30))), "leaves the image"),
    "no area": (lambda path: path.write_text(annotation(f"{path.stem}.jpg", (5, 5, 5, 30))), "has no area"),
    "no image": (lambda path: path.rename(path.with_name(f"other{path.name}")), ""),
}


@pytest.mark.parametrize("kind", ["broken", "no box", "outside", "no area"])
def test_bad_annotations_are_one_line_with_the_file(kind, boxes, tmp_path, capsys):
    change, words = BAD_BOXES[kind]
    on_all(boxes / "Annotations", "*.xml", change)
    error = refusal(detection(boxes), tmp_path, capsys)
    assert words in error
    assert ".xml" in error


def detection(root: Path) -> list[str]:
    """Arguments for detection alone in a folder."""
    return ["--tasks", "[detection]", "--detection-data", "voc_boxes", "--detection-dir", str(root)]


def segmentation(root: Path) -> list[str]:
    """Arguments for segmentation alone in a folder."""
    return ["--tasks", "[segmentation]", "--segmentation-data", "mask_folder", "--segmentation-dir", str(root)]


def test_one_bad_file_is_found_in_whichever_seed_draws_it(boxes, tmp_path, capsys):
    """20 of 24 images are drawn for training: image 7 is in some seed's subset, not in every one."""
    (boxes / "Annotations" / "07.xml").write_text(annotation("07.jpg", (5, 5, 65, 30)))
    error = refusal([*detection(boxes), "--seeds", "[0,1,2,3,4]"], tmp_path, capsys)
    assert "07.xml" in error


def test_boxes_that_leave_the_image_can_be_cut_on_demand(boxes, tmp_path, capsys):
    on_all(boxes / "Annotations", "*.xml", BAD_BOXES["no area"][0])
    error = refusal([*detection(boxes), "--on-bad-annotation", "skip"], tmp_path, capsys)
    assert "nothing is annotated in the train part" in error  # all boxes were empty, none is left


def test_a_missing_image_or_an_image_that_is_none_is_one_line(boxes, tmp_path, capsys):
    (boxes / "JPEGImages" / "05.jpg").unlink()
    assert "05" in refusal(detection(boxes), tmp_path, capsys)
    on_all(boxes / "JPEGImages", "*.jpg", lambda path: path.write_bytes(b"no picture"))
    (boxes / "JPEGImages" / "05.jpg").write_bytes(b"no picture")
    assert "cannot read image" in refusal(detection(boxes), tmp_path, capsys)


BAD_MASKS = {
    "missing": (lambda path: path.unlink(), "has no mask"),
    "other size": (lambda path: write_mask(path.parents[1], int(path.stem), np.arange(SIZE[1]) > 9, 30), "64 x 30"),
    "colour": (lambda path: picture(0).save(path), "colour image"),
    "unreadable": (lambda path: path.write_bytes(b"no mask"), "cannot read mask"),
    "one class": (lambda path: write_mask(path.parents[1], int(path.stem), np.arange(SIZE[1]) < 0), "two classes"),
}


@pytest.mark.parametrize("kind", list(BAD_MASKS))
def test_bad_masks_are_one_line_with_the_file(kind, masks, tmp_path, capsys):
    change, words = BAD_MASKS[kind]
    on_all(masks / "masks", "*.png", change)
    error = refusal(segmentation(masks), tmp_path, capsys)
    assert words in error
    assert str(masks) in error


def test_an_unknown_class_id_is_one_line(masks, tmp_path, capsys):
    on_all(masks / "masks", "*.png", lambda path: write_mask(masks, int(path.stem), np.arange(SIZE[1]) % 3))
    error = refusal([*segmentation(masks), "--segmentation-classes", "[cell,rest]"], tmp_path, capsys)
    assert "unknown class ids 2" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "[detecton]"], "did you mean detection"),
        (["--tasks", "[]"], "--tasks"),
        (["--tasks", "[detection,detection]"], "--tasks"),
        (["--sizes", "[10]"], "--sizes"),
        (["--sizes", "[10,25]"], "equal shares of the 10 classes"),
        (["--sizes", "[10,100000]"], "samples_per_class is 10000, but"),
        (["--tasks", "[detection]", "--sizes", "[10,100000]"], "100000"),
        (["--weights", "none"], "--weights none"),
        (["--tasks", "[detection]", "--detector", "yolo"], "retinanet"),
        (["--tasks", "[detection]", "--pyramid-channels", "33"], "multiple of 32"),
        (["--tasks", "[segmentation]", "--head", "fnc"], "did you mean fcn"),
        (["--tasks", "[detection]", "--detection-data", "scene"], "did you mean scenes"),
        (["--tasks", "[detection]", "--detection-data", "mask_folder"], "not for detection"),
        (["--tasks", "[detection]", "--detection-data", "voc_boxes"], "data directory"),
        (["--tasks", "[segmentation]", "--segmentation-data", "mask_folder", "--segmentation-dir", "/no"], "/no"),
        (["--tasks", "[segmentation]", "--void-ids", "[300]"], "void_ids"),
    ],
)
def test_what_cannot_be_is_one_line_before_the_first_trial(arguments, message, tmp_path, capsys):
    assert message in refusal(arguments, tmp_path, capsys)


def test_a_task_of_which_every_trial_failed_is_left_out_of_the_report(out, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    for path in folder.glob("trials/detection*/record.json"):
        record = json.loads(path.read_text())
        measured = {key for key in record if key.startswith(("test_", "val_"))}
        failed = {key: value for key, value in record.items() if key not in measured}
        path.write_text(json.dumps({**failed, "status": "failed", "error": "no memory"}))
    with pytest.raises(SystemExit) as end:
        main(study(), [*TINY, "--out", str(folder)])
    assert end.value.code == 1
    assert pd.read_csv(folder / "criteria.csv")["claim"].str.contains("segmentation").tolist() == [True]
    report = (folder / "report.md").read_text()
    assert "The report ends here" not in report
    assert "no memory" in report
