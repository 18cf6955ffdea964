from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tl_lightning.errors import UserError
from tl_lightning.study.dense_examples import DenseExamples, Objects
from tl_lightning.study.plots import dense_predictions
from tl_lightning.study.plots.pictures import as_picture, map_alone, map_over_image, picture_rows
from tl_lightning.study.plots.predictions import class_colour


def test_a_map_shows_the_image_where_it_is_low_and_is_bright_where_it_is_high():
    image = np.zeros((3, 4, 4), dtype=np.float32)
    image[:, :, 2:] = 1
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[0, 0] = 7
    picture = map_over_image(image, heat)
    assert picture.shape == (4, 4, 3)
    assert picture[0, 0].mean() > 0.5  # the image is black there
    assert picture[3, 3].mean() > 0.8  # and white there
    assert picture[3, 0].mean() < 0.1
    assert np.isfinite(map_over_image(image, -heat)).all()
    np.testing.assert_allclose(map_over_image(image, heat), map_over_image(image, 100 * heat))


def test_brightness_of_a_map_alone_rises_with_its_values():
    bright = map_alone(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).mean(2).ravel()
    assert (np.diff(bright) > -0.02).all()
    assert bright[-1] - bright[0] > 0.5


def test_rows_of_unequal_length_and_texts_that_do_not_overlap():
    image = as_picture(np.full((3, 8, 8), 0.5, dtype=np.float32))
    rows = {"image": [image] * 2, "trained down to features.8": [image] * 4, "x": [image]}
    captions = {name: [f"channel {i}\nsecond line" for i in range(len(cells))] for name, cells in rows.items()}
    figure = picture_rows(rows, columns=["Grad-CAM"] * 4, captions=captions)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert sum(bool(axes.images) for axes in figure.axes) == 7
    visible = [axes for axes in figure.axes if axes.axison]
    texts = [t for axes in visible for t in (axes.xaxis.label, axes.yaxis.label, axes.title) if t.get_text()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    assert len(boxes) == 7 + 3 + 2
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_nothing_to_draw_is_said():
    with pytest.raises(UserError, match="no pictures"):
        picture_rows({})


def test_the_text_of_columns_may_stand_above_the_rows_it_holds_for():
    image = np.zeros((8, 8, 3), dtype=np.float32)
    figure = picture_rows({"image": [image] * 2, "trained": [image] * 2}, columns=["a", "b"], heading=1)
    assert [axes.get_title() for axes in figure.axes] == ["", "", "a", "b"]


def test_an_image_without_a_box_says_so():
    image = np.zeros((1, 3, 8, 8), np.uint8)
    box = Objects(np.array([[1.0, 1, 5, 5]], np.float32), np.array([1]), np.array([0.4], np.float32))
    truth = Objects(box.boxes, box.labels, np.array([1.0], np.float32))
    figure = dense_predictions({"model": DenseExamples(image, [truth], [box], ("a", "b"))}, certain=0.5)
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "no box ≥ 0.5"]
    assert [legend.get_title().get_text() for legend in figure.legends] == ["class"]


# Machado et al. 2009, "A physiologically-based model for simulation of color vision deficiency": linear RGB, severity 1
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(linear):
    """Return linear RGB as CIE Lab."""
    ratio = linear.clip(0, 1) @ TO_XYZ.T / [0.9505, 1.0, 1.089]
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@pytest.mark.parametrize("sight", [np.eye(3), np.array(DEUTAN), np.array(PROTAN)], ids=["all", "deutan", "protan"])
def test_classes_can_be_told_apart_with_any_sight(sight):
    colours = np.array([class_colour(number) for number in range(16)]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = lab(linear @ sight.T)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 1000 * np.eye(16)
    assert apart[:11, :11].min() > 30
    assert apart.min() > 18
