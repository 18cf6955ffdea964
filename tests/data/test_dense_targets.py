"""Boxes and masks follow their images: exact cases, and the box of a moved mask is the moved box."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_lightning.data.augment import Augmentation, Geometry
from tl_lightning.data.augment.random import BatchPosition
from tl_lightning.data.augment.targets import VOID, move_boxes, move_masks

HEIGHT, WIDTH = 24, 32


def geometry(matrix, padding="zeros", aligned=True) -> Geometry:
    return Geometry(torch.tensor([matrix], dtype=torch.float32), padding, aligned)


FLIP = geometry([[-1, 0, 0], [0, 1, 0], [0, 0, 1]])
UPSIDE_DOWN = geometry([[1, 0, 0], [0, -1, 0], [0, 0, 1]])
SHIFT = geometry([[1, 0, 5], [0, 1, -3], [0, 0, 1]])  # shows what lies 5 px to the right and 3 px above
LEFT_HALF = geometry([[0.5, 0, -WIDTH / 4], [0, 1, 0], [0, 0, 1]], aligned=False)


def moved(box, by: Geometry, min_visible: float = 0.0) -> list[float] | None:
    boxes, kept = move_boxes([torch.tensor([box], dtype=torch.float32)], by, HEIGHT, WIDTH, min_visible)
    return boxes[0][0].tolist() if kept[0].item() else None


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (FLIP, [WIDTH - 12, 6, WIDTH - 4, 20]),
        (UPSIDE_DOWN, [4, HEIGHT - 20, 12, HEIGHT - 6]),
        (SHIFT, [0, 9, 7, 23]),
        (LEFT_HALF, [8, 6, 24, 20]),
    ],
)
def test_exact_cases(by, expected):
    assert moved([4, 6, 12, 20], by) == pytest.approx(expected, abs=1e-5)


def test_a_quarter_turn_swaps_the_sides_of_a_centred_box():
    turn = geometry([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], aligned=False)
    assert moved([12, 4, 20, 20], turn) == pytest.approx([8, 8, 24, 16], abs=1e-5)


def test_a_turned_box_is_the_upright_one_around_it():
    c = math.sqrt(0.5)
    turn = geometry([[c, c, 0], [-c, c, 0], [0, 0, 1]], aligned=False)
    side = 8 * math.sqrt(2)
    centre = [WIDTH / 2, HEIGHT / 2]
    assert moved([12, 8, 20, 16], turn) == pytest.approx(
        [x - side / 2 for x in centre] + [x + side / 2 for x in centre]
    )


def test_boxes_of_which_too_little_is_left_are_taken_out():
    assert moved([0, 6, 10, 20], SHIFT, min_visible=0.5) == pytest.approx([0, 9, 5, 23])
    assert moved([0, 6, 10, 20], SHIFT, min_visible=0.51) is None
    assert moved([0, 6, 4, 20], SHIFT) is None  # nothing is left
    assert moved([0, 6, 5.5, 20], SHIFT) is None  # half a pixel shows nothing


def test_every_image_keeps_its_own_boxes():
    boxes = [torch.tensor([[1.0, 1, 9, 9]]), torch.zeros(0, 4), torch.tensor([[2.0, 2, 9, 9], [20, 5, 30, 20]])]
    both = Geometry(torch.cat([FLIP.matrix, SHIFT.matrix, FLIP.matrix]), "zeros", True)
    result, kept = move_boxes(boxes, both, HEIGHT, WIDTH, 0.3)
    assert [len(found) for found in result] == [1, 0, 2]
    assert [mark.tolist() for mark in kept] == [[True], [], [True, True]]
    assert result[2][1].tolist() == [WIDTH - 30, 5, WIDTH - 20, 20]


def mask_of(box: tuple[int, int, int, int], height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.int64)
    x1, y1, x2, y2 = box
    mask[:, y1:y2, x1:x2] = 3
    return mask


def box_of(mask: torch.Tensor) -> list[int] | None:
    rows, columns = (mask[0] == 3).nonzero().unbind(1)
    if not len(rows):
        return None
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


boxes = st.tuples(
    st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, WIDTH), st.integers(1, HEIGHT)
).map(lambda b: (b[0], b[1], min(b[0] + b[2], WIDTH), min(b[1] + b[3], HEIGHT)))


@settings(max_examples=150, deadline=None)
@given(box=boxes, flip=st.booleans(), upside_down=st.booleans(), padding=st.integers(0, 9), seed=st.integers(0, 10**6))
def test_the_box_of_a_moved_mask_is_the_moved_box(box, flip, upside_down, padding, seed):
    settings_ = Augmentation(flip=flip, vertical_flip=upside_down, crop_padding=padding, padding="zeros", seed=seed)
    drawn = settings_.sample_geometry(torch.Size([1, 3, HEIGHT, WIDTH]), BatchPosition(0, 0))
    if drawn is None:
        return
    mask = move_masks(mask_of(box), drawn)
    assert box_of(mask) == (moved(box, drawn))
    image = drawn.apply_image(mask_of(box)[:, None].float())
    assert torch.equal(image[:, 0], mask.masked_fill(mask == VOID, 0).float())


@settings(max_examples=150, deadline=None)
@given(box=boxes, low=st.floats(0.05, 1), seed=st.integers(0, 10**6))
def test_the_box_of_a_mask_that_changes_its_size_is_the_moved_box_to_the_pixel(box, low, seed):
    settings_ = Augmentation(resized_crop=(low, 1.0), padding="zeros", seed=seed)
    drawn = settings_.sample_geometry(torch.Size([1, 3, HEIGHT, WIDTH]), BatchPosition(0, 0))
    ours, theirs = moved(box, drawn), box_of(move_masks(mask_of(box), drawn))
    if ours is None or theirs is None:
        return
    assert ours == pytest.approx(theirs, abs=0.5 + 1e-3)  # a pixel belongs to where its centre lies


@settings(max_examples=50, deadline=None)
@given(box=boxes, randaugment=st.integers(1, 3), magnitude=st.integers(0, 30), seed=st.integers(0, 10**6))
def test_the_moved_box_holds_the_mask_of_a_turned_image(box, randaugment, magnitude, seed):
    settings_ = Augmentation(randaugment=randaugment, magnitude=magnitude, padding="zeros", seed=seed)
    position = BatchPosition(0, 0)
    operations = settings_._draw_operations(1, position)
    drawn = settings_.sample_geometry(torch.Size([1, 3, HEIGHT, WIDTH]), position, operations)
    inside = box_of(move_masks(mask_of(box), drawn))
    boxes_, kept = move_boxes([torch.tensor([box], dtype=torch.float32)], drawn, HEIGHT, WIDTH, 0.0)
    if inside is None or not kept[0].item():
        return
    x1, y1, x2, y2 = boxes_[0][0].tolist()
    assert x1 - 0.51 <= inside[0]
    assert y1 - 0.51 <= inside[1]
    assert inside[2] <= x2 + 0.51
    assert inside[3] <= y2 + 0.51


def test_beyond_the_border_lies_void_or_the_mirrored_mask():
    mask = mask_of((0, 0, 4, HEIGHT))
    black = move_masks(mask, geometry([[1, 0, -3], [0, 1, 0], [0, 0, 1]]))
    assert (black[0, :, :3] == VOID).all()
    assert (black[0, :, 3:7] == 3).all()
    mirrored = move_masks(mask, geometry([[1, 0, -3], [0, 1, 0], [0, 0, 1]], padding="reflection"))
    assert (mirrored[0, :, :7] == 3).all()
    assert (mirrored[0, :, 7:] == 0).all()
