"""Predictions of dense tasks: kept beside the trial, drawn on their images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tl_lightning.data import DenseDataModule
from tl_lightning.errors import UserError
from tl_lightning.study.dense_examples import DenseExamples, Objects, read_dense_examples
from tl_lightning.study.kept_examples import keep_dense_examples
from tl_lightning.study.plots import boxes_over_image, dense_predictions, mask_over_image
from tl_lightning.study.plots.predictions import class_colour
from tl_lightning.tasks import DetectionModule, SegmentationModule

GREY = np.full((3, 32, 32), 128, np.uint8)


def module_of(task):
    torch.manual_seed(0)
    if task == "detection":
        return DetectionModule("mobilenet_v3_small", 10, detector="faster_rcnn", pyramid_channels=32)
    return SegmentationModule("mobilenet_v3_small", 11)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_what_is_kept_is_what_the_module_predicts_and_the_module_stays_as_it_was(task, tmp_path):
    images = DenseDataModule(task=task, image_size=64, train_images=2, val_images=3, test_images=2)
    images.setup()
    module = module_of(task).train()
    module.backbone.eval()  # as where it is frozen
    before = {name: value.clone() for name, value in module.state_dict().items()}
    keep_dense_examples(tmp_path, module, images, count=2)
    assert module.training
    assert not any(part.training for part in module.backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["examples.npz"]

    found = read_dense_examples(tmp_path)
    assert np.array_equal(found.images, images.val_set.images[:2].numpy())
    assert found.class_names == tuple(images.class_names)
    with torch.inference_mode():
        expected = module.eval().predict_step({"image": images.val_set.images[:2].float() / 255}, 0)
    if task == "segmentation":
        assert np.array_equal(found.predicted, expected.numpy())
        assert np.array_equal(found.truth[1], images.val_set.examples[1].mask)
    else:
        assert sum(len(one["labels"]) for one in expected) > 0
        for kept, one in zip(found.predicted, expected, strict=True):
            assert np.allclose(kept.boxes, one["boxes"].numpy())
            assert np.array_equal(kept.labels, one["labels"].numpy())
        assert np.array_equal(found.truth[1].boxes, images.val_set.examples[1].boxes)


@pytest.mark.parametrize("content", [None, b"", b"broken", b"PK\x03\x04 cut short"])
def test_a_folder_without_examples_or_with_a_broken_file_has_none(content, tmp_path):
    if content is not None:
        (tmp_path / "examples.npz").write_bytes(content)
    assert read_dense_examples(tmp_path) is None


def test_a_box_is_framed_where_it_is_in_the_colour_of_its_class():
    picture = boxes_over_image(GREY, np.array([[8.0, 4.0, 24.0, 28.0]]), np.array([2]))
    scale = picture.shape[0] // 32
    colour = np.array(class_colour(1)) / 255
    for row, column in ((4, 8), (4, 20), (16, 8)):  # on the upper and left edges
        assert np.allclose(picture[row * scale + 1, column * scale + 1], colour)
    assert np.allclose(picture[27 * scale + scale - 2, 23 * scale + scale - 2], colour)  # lower right corner
    assert np.allclose(picture[16 * scale, 16 * scale], 128 / 255, atol=0.01)  # within
    assert np.allclose(picture[2 * scale, 16 * scale], 128 / 255, atol=0.01)  # without


def test_background_and_void_stay_and_classes_take_their_colours():
    mask = np.zeros((32, 32), np.uint8)
    mask[:8], mask[8:16] = 1, 255
    picture = mask_over_image(GREY, mask, ("background", "cell"))
    assert np.allclose(picture[8:], 128 / 255)
    assert np.ptp(picture[0, 0]) > 0.1  # coloured
    without = mask_over_image(GREY, mask, ("sky", "road"))
    assert np.ptp(without[31, 31]) > 0.1  # class 0 is a class here
    assert np.allclose(without[10], 128 / 255)  # void is not


def objects(count, score=0.9):
    places = np.arange(count, dtype=np.float32)
    boxes = np.stack([places, places, places + 8, places + 8], 1)
    return Objects(boxes, np.arange(1, count + 1), np.full(count, score, np.float32))


@pytest.mark.parametrize("classes", [3, 10])
def test_boxes_below_the_score_are_not_drawn_and_few_classes_get_a_legend(classes):
    names = tuple(f"class {k}" for k in range(classes))
    truth = [objects(2)]
    sure = DenseExamples(GREY[None], truth, [objects(3, 0.8)], names)
    unsure = DenseExamples(GREY[None], truth, [objects(3, 0.2)], names)
    figure = dense_predictions({"sure": sure, "unsure": unsure}, certain=0.5)
    pictures = [axes.images[0].get_array() for axes in figure.axes]
    assert len(pictures) == 3
    assert np.ptp(pictures[1]) > 0
    assert np.ptp(pictures[2]) == 0
    legend = [text.get_text() for found in figure.legends for text in found.get_texts()]
    assert legend == (list(names) if classes == 3 else [])


def test_masks_get_a_legend_of_the_classes_that_occur():
    mask = np.zeros((1, 32, 32), np.uint8)
    mask[:, :8] = 2
    found = DenseExamples(GREY[None], mask, np.zeros_like(mask), ("background", "a", "b", "c"))
    figure = dense_predictions({"model": found})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b"]


def test_nothing_to_draw_is_said():
    with pytest.raises(UserError, match="no predictions"):
        dense_predictions({})
