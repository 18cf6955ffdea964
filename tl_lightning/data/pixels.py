"""Square uint8 images that can be gathered by position: in memory, decoded once, or read from files each time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tl_lightning.data.decoding import BadImageError
from tl_lightning.data.sources import PixelSource, Positions

_WORTH_TELLING = 5000  # images
_log = logging.getLogger(__name__)


class Pixels(Protocol):
    """Images of one shape, uint8 [C, size, size], gathered by position."""

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""

    @property
    def size(self) -> int:
        """Side in pixels."""

    def __len__(self) -> int: ...

    def prepare(self, positions: Positions) -> dict[int, BadImageError]:
        """Make the images at ``positions`` ready to be gathered and return those that cannot be read."""

    def gather(self, positions: Tensor) -> Tensor:
        """Return uint8 [n, C, size, size].

        Raises:
            BadImageError: An image among them cannot be read.
        """


class TensorPixels:
    """Images in one tensor, which may be memory-mapped.

    Args:
        images: uint8 [N, C, S, S].
        failures: The images that could not be read when the tensor was made, by position.
    """

    def __init__(self, images: Tensor, failures: Mapping[int, BadImageError] | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != images.shape[-2]:
            raise ValueError(f"wanted uint8 [N, C, S, S], got {images.dtype} {tuple(images.shape)}")
        self.images = images
        self.failures = dict(failures or {})

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.images.shape[1]

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.images.shape[-1]

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.images.numel()

    def prepare(self, positions: Positions) -> dict[int, BadImageError]:
        """Return the images among ``positions`` that could not be read."""
        return _among(self.failures, positions)

    def gather(self, positions: Tensor) -> Tensor:
        """Return uint8 [n, C, S, S]."""
        _raise_first(_among(self.failures, positions.numpy()))
        return self.images.index_select(0, positions)


class MappedPixels(TensorPixels):
    """Images in a memory-mapped file: they take no memory that the system could not take back."""

    nbytes = 0


class DecodedPixels:
    """Images decoded once, when first prepared or gathered, and kept in memory.

    Only what is asked for is decoded, so a small subset of a large set costs little.

    Args:
        source: Where the images come from.
        size: Side of the square that they are decoded to.
    """

    def __init__(self, source: PixelSource, size: int) -> None:
        self.source = source
        self.size = size
        self.channels = source.channels
        self.image_bytes = source.channels * size * size
        self.failures: dict[int, BadImageError] = {}
        self._rows = torch.full((len(source),), -1)  # row of `_images` that holds each image
        self._images = torch.empty((0, self.channels, size, size), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def nbytes(self) -> int:
        """Bytes that the decoded images take."""
        return self._images.numel()

    def missing(self, positions: Positions) -> int:
        """Return how many of the images are not decoded yet."""
        return int((self._rows.numpy()[np.unique(positions)] < 0).sum())

    def prepare(self, positions: Positions) -> dict[int, BadImageError]:
        """Decode what is not decoded yet and return the failures among ``positions``."""
        wanted = np.unique(positions)
        missing = wanted[self._rows.numpy()[wanted] < 0]
        if len(missing):
            self._decode(missing)
        return _among(self.failures, wanted)

    def gather(self, positions: Tensor) -> Tensor:
        """Return uint8 [n, C, size, size], decoding what is missing."""
        rows = self._rows[positions]
        if bool((rows < 0).any()) or self.failures:
            _raise_first(self.prepare(positions.numpy()))
            rows = self._rows[positions]
        return self._images.index_select(0, rows)

    @property
    def complete(self) -> bool:
        """Whether every image of the source was decoded."""
        return len(self._images) == len(self.source)

    def all(self) -> tuple[Tensor, dict[int, BadImageError]]:
        """Return all images in the source's order and those that could not be read (zero)."""
        self.prepare(np.arange(len(self)))
        in_order = torch.equal(self._rows, torch.arange(len(self)))
        return (self._images if in_order else self._images[self._rows]), self.failures

    def _decode(self, missing: Positions) -> None:
        if len(missing) >= _WORTH_TELLING:
            _log.info("decoding %d images to %d px", len(missing), self.size)
        images = torch.empty((len(missing), self.channels, self.size, self.size), dtype=torch.uint8)
        self.failures |= self.source.read(missing, self.size, images)
        start = len(self._images)
        self._images = torch.cat([self._images, images]) if start else images
        self._rows[torch.from_numpy(missing)] = torch.arange(start, start + len(missing))


class StreamedPixels:
    """Images read from their source each time they are gathered: slow, but takes no memory.

    Args:
        source: Where the images come from.
        size: Side of the square that they are decoded to.
        check: Read every image once in ``prepare`` to find those that cannot be read.
    """

    def __init__(self, source: PixelSource, size: int, check: bool = False) -> None:
        self.source = source
        self.size = size
        self.channels = source.channels
        self.check = check

    def __len__(self) -> int:
        return len(self.source)

    def prepare(self, positions: Positions) -> dict[int, BadImageError]:
        """Find the images that cannot be read, where that was asked for."""
        failures: dict[int, BadImageError] = {}
        for start in range(0, len(positions) if self.check else 0, 256):
            chunk = positions[start : start + 256]
            failures |= self.source.read(chunk, self.size, self._empty(len(chunk)))
        return failures

    def gather(self, positions: Tensor) -> Tensor:
        """Return uint8 [n, C, size, size], read now."""
        images = self._empty(len(positions))
        failures = self.source.read(positions.numpy(), self.size, images)
        _raise_first(failures)
        return images

    def _empty(self, count: int) -> Tensor:
        return torch.empty((count, self.channels, self.size, self.size), dtype=torch.uint8)


def _among(failures: Mapping[int, BadImageError], positions: Positions) -> dict[int, BadImageError]:
    if not failures:
        return {}
    return {int(position): failures[int(position)] for position in positions if int(position) in failures}


def _raise_first(failures: Mapping[int, BadImageError]) -> None:
    if failures:
        raise failures[min(failures)]
