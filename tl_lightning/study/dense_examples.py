"""What detectors and segmentation models say of a few images, as the report draws it; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

NAME = "examples.npz"


@dataclass(frozen=True)
class Objects:
    """Boxes in one image: float [n, 4] (x1, y1, x2, y2 in pixels), labels int [n] from 1 and scores [n]."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class DenseExamples:
    """A few images, what is in them, and what a model says.

    Attributes:
        images: uint8 [N, 3, H, W].
        truth: An ``Objects`` an image, or masks uint8 [N, H, W].
        predicted: The same of the model.
        class_names: As in the data module.
    """

    images: NDArray[np.uint8]
    truth: list[Objects] | NDArray[np.uint8]
    predicted: list[Objects] | NDArray[np.uint8]
    class_names: tuple[str, ...]


def read_dense_examples(folder: Path) -> DenseExamples | None:
    """Return what ``kept_examples`` wrote to a folder; None where it is not there (any more)."""
    try:
        with np.load(folder / NAME) as found:
            arrays = dict(found)
    except (OSError, EOFError, ValueError, BadZipFile):
        return None
    images, names = arrays["images"], tuple(map(str, arrays["class_names"]))
    if "masks" in arrays:
        return DenseExamples(images, arrays["true_masks"], arrays["masks"], names)
    truth, predicted = (_objects(arrays[key], len(images)) for key in ("true_objects", "objects"))
    return DenseExamples(images, truth, predicted, names)


def _objects(table: NDArray[np.float32], count: int) -> list[Objects]:
    by_image = [table[table[:, 0] == k] for k in range(count)]
    return [Objects(rows[:, 1:5], rows[:, 5].astype(np.int64), rows[:, 6]) for rows in by_image]
