from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tl_lightning.errors import UserError
from tl_lightning.study.plots.pictures import as_picture, map_alone, map_over_image, picture_rows


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
