"""Composed scenes: exact boxes and masks, the same for the same number, real digits that parts do not share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.datasets import load_digits

from tl_lightning.data.scenes import PARTS, _digits, compose

parts = st.sampled_from(list(PARTS))


@settings(max_examples=40, deadline=None)
@given(part=parts, number=st.integers(0, 1999), height=st.integers(32, 160), width=st.integers(32, 160))
def test_boxes_are_the_tight_boxes_of_the_visible_pixels(part, number, height, width):
    scene = compose(part, number, height, width)
    assert scene.image.shape == (3, height, width)
    assert scene.mask.shape == (height, width)
    assert len(scene.boxes) == len(scene.labels) >= 1
    covered = np.zeros((height, width), bool)
    for (x1, y1, x2, y2), label in zip(scene.boxes.astype(int), scene.labels, strict=True):
        inside = scene.mask[y1:y2, x1:x2] == label
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.any()  # a smaller box would cut the digit
        covered[y1:y2, x1:x2] = True
    assert not scene.mask[~covered].any()  # a larger one is not needed
    assert set(np.unique(scene.mask)) <= {0, *scene.labels}


def test_every_digit_of_the_mask_has_a_box():
    found = expected = 0
    for number in range(50):
        scene = compose("train", number, 128, 128)
        expected += len(scene.boxes)
        for label in set(scene.labels):
            # strokes of one digit may be apart by a few pixels at most
            mask = ndimage.binary_dilation(scene.mask == label, iterations=1)
            found += ndimage.label(mask, structure=np.ones((3, 3)))[1]
    assert expected <= found <= 1.2 * expected


def test_a_scene_depends_on_part_and_number_alone():
    first, again = compose("val", 3, 96, 96), compose("val", 3, 96, 96)
    assert (first.image == again.image).all()
    assert (first.boxes == again.boxes).all()
    assert not (compose("val", 4, 96, 96).image == first.image).all()
    assert not (compose("test", 3, 96, 96).image == first.image).all()


@pytest.mark.parametrize("number", range(5))
def test_the_layout_is_the_same_at_another_size(number):
    small, large = compose("train", number, 80, 120), compose("train", number, 160, 240)
    assert (small.labels == large.labels).all()
    assert np.abs(small.boxes * 2 - large.boxes).max() <= 6


def test_parts_show_different_handwriting_and_all_of_it_is_real():
    counts = {part: len(_digits(part)[0]) for part in PARTS}
    assert sum(counts.values()) == len(load_digits().target)
    assert min(counts.values()) > 300
    images = np.concatenate([_digits(part)[0] for part in PARTS]).reshape(-1, 64)
    real = np.rint(load_digits().images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    assert sorted(map(bytes, images)) == sorted(map(bytes, real))


def test_digits_stand_out_from_the_background():
    scenes = [compose("train", number, 96, 96) for number in range(20)]
    ink = np.concatenate([s.image.max(0)[s.mask > 0] for s in scenes])
    background = np.concatenate([s.image.max(0)[s.mask == 0] for s in scenes])
    assert np.median(ink) > np.quantile(background, 0.9)
