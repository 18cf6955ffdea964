"""Annotated images in one form, whatever the format of the files: boxes in pixels, classes by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl_lightning.errors import UserError

OnBad = Literal["error", "skip"]
Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image file and the objects in it.

    Attributes:
        path: The image.
        source: The annotation file, for messages.
        boxes: float32 [n, 4], (x1, y1, x2, y2): the edges in pixels of the file, from the upper left corner.
        labels: int64 [n], from 1; 0 is the background.
        crowd: bool [n]: objects that count neither as found nor as missed (COCO's crowds, Pascal VOC's difficult).
        size: (height, width) as the annotation states it, None where it does not.
    """

    path: Path
    source: Path
    boxes: Boxes
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class AnnotatedSet:
    """The parts of an annotated data set (``train`` and, where they exist, ``val`` and ``test``) and its classes.

    ``class_names[k]`` is the class of label ``k + 1``.
    """

    parts: Mapping[str, tuple[AnnotatedImage, ...]]
    class_names: tuple[str, ...]


def checked(
    image: AnnotatedImage, height: int, width: int, on_bad: OnBad = "error"
) -> tuple[Boxes, NDArray[np.int64], NDArray[np.bool_]]:
    """Return boxes, labels and crowd marks after a look at the size of the image file.

    Args:
        image: The annotated image.
        height: Height of the file in pixels.
        width: Width of the file in pixels.
        on_bad: What to do with a box that leaves the image or has no area: refuse it, or cut it to the image and
            leave it out when nothing is left.

    Raises:
        UserError: The annotation states another size, or a box is bad and ``on_bad`` is ``"error"``.
    """
    if image.size is not None and image.size != (height, width):
        raise UserError(
            f"{image.source}: states {image.size[1]} x {image.size[0]} pixels, but {image.path} has {width} x {height}"
        )
    boxes = image.boxes
    limit = np.array([width, height, width, height], np.float32)
    if on_bad == "error":
        _refuse_bad(image, boxes, limit)
        return boxes, image.labels, image.crowd
    boxes = np.nan_to_num(boxes).clip(0, limit).astype(np.float32)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return boxes[kept], image.labels[kept], image.crowd[kept]


def _refuse_bad(image: AnnotatedImage, boxes: Boxes, limit: Boxes) -> None:
    empty = ~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    outside = ~((boxes >= 0) & (boxes <= limit)).all(1)
    for bad, what in ((empty, "has no area"), (outside, f"leaves the image of {limit[0]:g} x {limit[1]:g} pixels")):
        for row in np.flatnonzero(bad)[:1]:
            corners = ", ".join(f"{value:g}" for value in boxes[row])
            raise UserError(
                f"{image.source}: box ({corners}) of {image.path.name} {what}; mend it, or have such boxes cut to "
                "the image and empty ones left out (on_bad_annotation='skip')"
            )


def numbered(names: Sequence[str], class_names: Sequence[str], source: Path) -> NDArray[np.int64]:
    """Return the label of every name, from 1.

    Raises:
        UserError: A name is no class; names the file.
    """
    number = {name: k for k, name in enumerate(class_names, start=1)}
    for name in names:
        if name not in number:
            raise UserError(f"{source}: unknown class {name!r}; the classes are {', '.join(class_names)}")
    return np.array([number[name] for name in names], np.int64)
