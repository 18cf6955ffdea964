"""Where images with boxes or masks come from before they are decoded: annotated files, mask files, composed scenes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_lightning.data import scenes
from tl_lightning.data.annotations import AnnotatedImage, OnBad, checked
from tl_lightning.data.decoding import BadImageError, read_rgb
from tl_lightning.data.masks import MaskClasses, read_mask
from tl_lightning.errors import UserError

Size = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One image, decoded and resized, and what is to be found in it.

    Attributes:
        image: uint8 [3, H, W].
        boxes: float32 [n, 4], (x1, y1, x2, y2) in pixels.
        labels: int64 [n], from 1.
        crowd: bool [n], objects that count neither as found nor as missed.
        mask: uint8 [H, W], a class a pixel and 255 for void; None where only boxes are known.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    mask: NDArray[np.uint8] | None = None


class ExampleSource(Protocol):
    """Examples that can be read by position, at a wanted size."""

    def __len__(self) -> int: ...

    def read(self, position: int, size: Size) -> Example:
        """Return an example resized to (height, width), whatever its own aspect ratio.

        Raises:
            UserError: The files are unusable; names them.
        """

    def path(self, position: int) -> Path | None:
        """Return the image's file, if it comes from one."""

    def content_key(self) -> str:
        """Return a hash that changes when the files or the way to read them change."""


class BoxFiles:
    """Annotated image files.

    Args:
        images: The files with their boxes.
        on_bad: What to do with boxes that leave the image or have no area.
    """

    def __init__(self, images: Sequence[AnnotatedImage], on_bad: OnBad = "error") -> None:
        self.images = tuple(images)
        self.on_bad = on_bad

    def __len__(self) -> int:
        return len(self.images)

    def read(self, position: int, size: Size) -> Example:
        """Decode an image and scale its boxes with it."""
        annotated = self.images[position]
        image = read_image(annotated.path)
        boxes, labels, crowd = checked(annotated, image.height, image.width, self.on_bad)
        scale = np.array([size[1] / image.width, size[0] / image.height] * 2, np.float32)
        return Example(resized(image, size), boxes * scale, labels, crowd)

    def path(self, position: int) -> Path:
        """Return the image's file."""
        return Path(self.images[position].path)

    def content_key(self) -> str:
        """Return a hash of every file, its annotation file and its objects, whose numbers the classes decide."""
        files = hash_files((file for image in self.images for file in (image.path, image.source)), self.on_bad)
        digest = hashlib.blake2b(files.encode(), digest_size=16)
        for image in self.images:
            for values in (image.boxes, image.labels, image.crowd):
                digest.update(b"%d\0" % len(values) + values.tobytes())
        return digest.hexdigest()


class MaskFiles:
    """Image files with a mask file each.

    Args:
        pairs: Image and mask.
        classes: What the pixel values of the masks stand for.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], classes: MaskClasses) -> None:
        self.pairs = tuple(pairs)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, position: int, size: Size) -> Example:
        """Decode an image and its mask, which is resized to the nearest pixel."""
        image_path, mask_path = self.pairs[position]
        image = read_image(image_path)
        values = read_mask(mask_path)
        if values.shape != (image.height, image.width):
            raise UserError(
                f"mask {mask_path} has {values.shape[1]} x {values.shape[0]} pixels, but image {image_path} has "
                f"{image.width} x {image.height}"
            )
        mask = Image.fromarray(self.classes.translate(values, mask_path))
        return Example(resized(image, size), mask=np.array(mask.resize(size[::-1], Image.Resampling.NEAREST)))

    def path(self, position: int) -> Path:
        """Return the image's file."""
        return self.pairs[position][0]

    def content_key(self) -> str:
        """Return a hash of every file and of the classes."""
        return hash_files((file for pair in self.pairs for file in pair), repr(self.classes))


class ComposedScenes:
    """Scenes of handwritten digits, composed when they are read (see ``scenes``).

    Args:
        part: ``"train"``, ``"val"`` or ``"test"``.
    """

    def __init__(self, part: str) -> None:
        self.part = part

    def __len__(self) -> int:
        return scenes.PARTS[self.part]

    def read(self, position: int, size: Size) -> Example:
        """Compose a scene, with boxes and mask."""
        scene = scenes.compose(self.part, position, *size)
        return Example(scene.image, scene.boxes, scene.labels, np.zeros(len(scene.labels), bool), scene.mask)

    def path(self, position: int) -> None:
        """Return None: scenes are composed."""

    def content_key(self) -> str:
        """Return the name of the part: scenes are a pure function of it."""
        return f"scenes {self.part}"


def read_image(path: Path) -> Image.Image:
    """Return an image file as RGB, upright; see ``decoding`` for what becomes of 16 bits and transparency.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return read_rgb(path)
    except BadImageError as error:
        raise UserError(str(error)) from error


def resized(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """Return uint8 [3, H, W] of size (H, W); bilinear with antialiasing."""
    if (image.height, image.width) != size:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def hash_files(paths: Iterable[Path], settings: str) -> str:
    """Return a hash of every path, its size and its time of change, and of the settings."""
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for path in paths:
        stat = os.stat(path)
        digest.update(os.fsencode(path) + b"\0%d\0%d\0" % (stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()
