"""Digits in composed scenes as a classification set: coloured handwriting before coloured, grainy backgrounds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tl_lightning.data.images import RawPart, RawSet
from tl_lightning.data.scenes import CLASS_NAMES, Scene, compose
from tl_lightning.data.sources import ArraySource

NATIVE_SIZE = 32
COUNTS = {"train": 600, "val": 300, "test": 300}

_SCENE_SIZE = 96
_MARGIN = 0.25  # of the box's longer side, on each side of it


def load_scene_digits(root: Path | None) -> RawSet:
    """Load one crop of each scene: its largest digit with some of what lies around it, 32 x 32, labelled 0 to 9.

    See ``scenes``: the handwriting is real, colours and backgrounds are composed. The parts show different digits.
    ``root`` is not used.
    """
    parts = {}
    for part, count in COUNTS.items():
        images, labels = _crops(part, count)
        parts[part] = RawPart(ArraySource(torch.from_numpy(images)), labels)
    return RawSet(parts, CLASS_NAMES)


@cache
def _crops(part: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    scenes = [compose(part, number, _SCENE_SIZE, _SCENE_SIZE) for number in range(count)]
    largest = [int(np.argmax(_areas(scene))) for scene in scenes]
    images = np.stack([_crop(scene, index) for scene, index in zip(scenes, largest, strict=True)])
    labels = [int(scene.labels[index]) - 1 for scene, index in zip(scenes, largest, strict=True)]
    return images, np.asarray(labels, dtype=np.int64)


def _areas(scene: Scene) -> NDArray[np.float32]:
    sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


def _crop(scene: Scene, index: int) -> NDArray[np.uint8]:
    """Return the square around a box, moved into the scene, uint8 [3, 32, 32]."""
    x1, y1, x2, y2 = scene.boxes[index].tolist()
    side = min(_SCENE_SIZE, round(max(x2 - x1, y2 - y1) * (1 + 2 * _MARGIN)))
    left, top = (
        int(np.clip(round((low + high - side) / 2), 0, _SCENE_SIZE - side)) for low, high in ((x1, x2), (y1, y2))
    )
    image = Image.fromarray(scene.image.transpose(1, 2, 0)).crop((left, top, left + side, top + side))
    resized = image.resize((NATIVE_SIZE, NATIVE_SIZE), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
