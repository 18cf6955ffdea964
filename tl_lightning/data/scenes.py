"""Composed scenes: real handwritten digits on made-up backgrounds, with exact boxes and masks.

The digits are scikit-learn's ``load_digits`` (1,797 images of 8x8 pixels, UCI Optical Recognition of Handwritten
Digits). Everything else is composed: places, sizes, colours and backgrounds are drawn from a seed, so that a scene is
a pure function of (part, number, size of the image). Training, validation and test scenes show different digit
images. A network learns real handwriting here, but results say nothing about photographs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PARTS = {"train": 2000, "val": 300, "test": 300}
CLASS_NAMES = tuple(str(digit) for digit in range(10))

_DIGIT_SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
_MAX_DIGITS = 6
_SIDES = (0.2, 0.45)  # of a digit's square, as a share of the shorter side of the image
_OVERLAP = 0.1  # largest share of a digit's square that may lie under another one
_TRIES = 20

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """One composed image.

    Attributes:
        image: uint8 [3, H, W].
        mask: uint8 [H, W], 0 for the background and digit + 1 elsewhere.
        boxes: float32 [n, 4], the edges of the visible pixels of every digit.
        labels: int64 [n], digit + 1.
    """

    image: Pixels
    mask: Pixels
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class _Placed:
    """A digit in the layout; lengths are shares of the shorter side of the image."""

    digit: Pixels
    label: int
    side: float
    x: float
    y: float
    color: NDArray[np.float64]


def compose(part: str, number: int, height: int, width: int) -> Scene:
    """Return a scene; the layout is the same at every size of the same aspect ratio."""
    rng = np.random.default_rng([list(PARTS).index(part), number])
    background = _background(rng, height, width)
    layout = _layout(rng, part, width / min(height, width), height / min(height, width))
    return _render(layout, background)


def _background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return a smooth mixture of dim colours with grain, [H, W, 3] in 0..255."""
    coarse = rng.integers(0, 110, (4, 4, 3), dtype=np.uint8)
    grain = rng.normal(0, 6, (64, 64)).clip(-30, 30)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    repeats = (-(-height // 64), -(-width // 64))
    return (smooth + np.tile(grain, repeats)[:height, :width, None]).clip(0, 255)


def _layout(rng: np.random.Generator, part: str, right: float, bottom: float) -> list[_Placed]:
    images, labels = _digits(part)
    placed: list[_Placed] = []
    for _ in range(rng.integers(1, _MAX_DIGITS + 1)):
        pick = rng.integers(len(labels))
        side = rng.uniform(*_SIDES)
        color = rng.uniform(130, 255, 3)
        for _ in range(_TRIES):
            x, y = rng.uniform(0, right - side), rng.uniform(0, bottom - side)
            candidate = _Placed(images[pick], int(labels[pick]), side, x, y, color)
            if all(_covered(candidate, other) <= _OVERLAP for other in placed):
                placed.append(candidate)
                break
    return placed


def _covered(a: _Placed, b: _Placed) -> float:
    """Return the common area of two squares as a share of the smaller one."""
    width = min(a.x + a.side, b.x + b.side) - max(a.x, b.x)
    height = min(a.y + a.side, b.y + b.side) - max(a.y, b.y)
    return max(width, 0.0) * max(height, 0.0) / min(a.side, b.side) ** 2


def _render(layout: list[_Placed], background: NDArray[np.float64]) -> Scene:
    height, width = background.shape[:2]
    scale = min(height, width)
    canvas = background.copy()
    owner = np.zeros((height, width), np.int64)
    for k, placed in enumerate(layout, start=1):
        side = max(4, round(placed.side * scale))
        top, left = min(round(placed.y * scale), height - side), min(round(placed.x * scale), width - side)
        ink = np.asarray(Image.fromarray(placed.digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
        area = (slice(top, top + side), slice(left, left + side))
        canvas[area] += ink[:, :, None] * (placed.color - canvas[area])
        owner[area][ink >= 0.5] = k
    classes = np.array([0, *(placed.label + 1 for placed in layout)], np.uint8)
    visible = [k for k in range(1, len(classes)) if (owner == k).any()]
    boxes = np.array([_edges(owner == k) for k in visible], np.float32).reshape(-1, 4)
    image = np.ascontiguousarray(np.rint(canvas).astype(np.uint8).transpose(2, 0, 1))
    return Scene(image, classes[owner], boxes, classes[visible].astype(np.int64))


def _edges(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the tight box (x1, y1, x2, y2) of a mask with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@cache
def _digits(part: str) -> tuple[Pixels, NDArray[np.int64]]:
    """Return the digit images of a part, uint8 [n, 8, 8], and their digits; parts share no image."""
    from sklearn.datasets import load_digits  # only here: the import takes half a second

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    first, last = (round(share * len(order)) for share in _DIGIT_SHARES[part])
    chosen = np.sort(order[first:last])
    return np.rint(data.images[chosen] * 255 / 16).astype(np.uint8), data.target[chosen].astype(np.int64)
