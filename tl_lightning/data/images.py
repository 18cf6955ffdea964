"""A labelled set of square uint8 images, and a data set as it lies on disk before it is split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tl_lightning.data.pixels import Pixels, TensorPixels
from tl_lightning.data.sources import PixelSource

_HASHED_IMAGES = 1024


@dataclass(frozen=True)
class RawPart:
    """One part of a data set as published.

    Args:
        source: Its images.
        labels: int64 [N].
        strata: int64 [N] that a split keeps the mixture of, where that is more than the labels.
    """

    source: PixelSource
    labels: NDArray[np.int64]
    strata: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class RawSet:
    """A data set as published: its parts by name (``train`` and, where they exist, ``val`` and ``test``)."""

    parts: Mapping[str, RawPart]
    class_names: tuple[str, ...]


class ImageSet:
    """Square uint8 images with labels.

    Args:
        images: uint8 [N, C, S, S], or pixels gathered by position.
        labels: int64 [N].
        class_names: The name of every label.
        indices: int64 [N], the position in ``images`` of every member; by default all of them in order.
    """

    def __init__(
        self, images: Tensor | Pixels, labels: Tensor, class_names: Sequence[str], indices: Tensor | None = None
    ) -> None:
        self.pixels: Pixels = TensorPixels(images) if isinstance(images, Tensor) else images
        self.labels = labels
        self.class_names = tuple(class_names)
        self.indices = torch.arange(len(self.pixels)) if indices is None else indices
        if len(self.labels) != len(self.indices):
            raise ValueError(f"{len(self.indices)} images, but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, S, S) of the images."""
        return len(self), self.pixels.channels, self.pixels.size, self.pixels.size

    @property
    def images(self) -> Tensor:
        """All images as one tensor, uint8 [N, C, S, S]: a copy unless the set is its whole tensor in order."""
        whole = isinstance(self.pixels, TensorPixels) and len(self) == len(self.pixels)
        if whole and torch.equal(self.indices, torch.arange(len(self))):
            return self.pixels.images  # type: ignore[attr-defined]
        return self.gather(torch.arange(len(self)))

    def gather(self, positions: Tensor) -> Tensor:
        """Return the images at positions of this set, uint8 [n, C, S, S].

        Raises:
            BadImageError: An image among them cannot be read.
        """
        return self.pixels.gather(self.indices[positions])

    def content_hash(self) -> str:
        """Return a hash of the members' positions and labels and the pixels of up to 1,024 of them, evenly spread."""
        digest = hashlib.blake2b(str(self.shape).encode(), digest_size=16)
        digest.update(self.indices.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        picks = torch.linspace(0, len(self) - 1, min(len(self), _HASHED_IMAGES)).long()
        for some in picks.split(128):
            digest.update(self.gather(some).numpy().tobytes())
        return digest.hexdigest()

    def label_counts(self) -> Tensor:
        """Return int64 [number of classes], the images of every class."""
        return torch.bincount(self.labels, minlength=len(self.class_names))
