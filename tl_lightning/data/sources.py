"""Where the pixels of a data set part come from before they are decoded: image files or arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from tl_lightning.data.decoding import BadImageError, decode_image, image_shape

Positions = NDArray[np.int64]

_SAMPLED_HEADERS = 64
_CHUNK = 32  # images a thread takes at a time


class PixelSource(Protocol):
    """Images that can be read by position, at a wanted size."""

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""

    def __len__(self) -> int: ...

    def native_size(self) -> int:
        """Return the shorter side of the images in pixels (the largest where they differ)."""

    def read(self, positions: Positions, size: int, out: Tensor) -> dict[int, BadImageError]:
        """Write the images at ``positions`` to ``out`` (uint8 [n, C, size, size]) and return the failures.

        Returns:
            The error of each image that could not be read, by its position; its rows of ``out`` are zero.
        """

    def content_key(self) -> str:
        """Return a hash that changes when the images change."""


class FileSource:
    """Image files.

    Args:
        paths: The files, in order.
        channels: 3 for RGB, 1 for grey.
        threads: Decoding threads; by default the cores that this process may use.
    """

    def __init__(self, paths: Sequence[str], channels: int = 3, threads: int | None = None) -> None:
        self.paths = tuple(os.fspath(p) for p in paths)
        self.channels = channels
        self.threads = threads or available_cores()

    def __len__(self) -> int:
        return len(self.paths)

    def native_size(self) -> int:
        """Return the largest shorter side among up to 64 files spread over the list (unreadable ones left out)."""
        sides = []
        for pick in np.unique(np.linspace(0, len(self) - 1, _SAMPLED_HEADERS).astype(int)):
            try:
                sides.append(min(image_shape(self.paths[pick])))
            except BadImageError:
                continue
        return max(sides, default=1)

    def read(self, positions: Positions, size: int, out: Tensor) -> dict[int, BadImageError]:
        """Decode files in threads; see :class:`PixelSource`."""
        rows = out.numpy()
        failures: dict[int, BadImageError] = {}

        def decode_chunk(start: int) -> None:
            for row in range(start, min(start + _CHUNK, len(positions))):
                position = int(positions[row])
                try:
                    rows[row] = decode_image(self.paths[position], size, self.channels)
                except BadImageError as error:
                    rows[row] = 0
                    failures[position] = error

        starts = range(0, len(positions), _CHUNK)
        if self.threads == 1 or len(starts) <= 1 or get_worker_info() is not None:
            for start in starts:
                decode_chunk(start)
            return failures
        pool = ThreadPoolExecutor(self.threads)
        try:
            list(pool.map(decode_chunk, starts))
        finally:  # after Ctrl-C nobody wants the rest
            pool.shutdown(cancel_futures=True)
        return failures

    def content_key(self) -> str:
        """Return a hash of every path, its size and its time of change."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.paths:
            try:
                stat = os.stat(path)
                digest.update(os.fsencode(path) + b"\0%d\0%d\0" % (stat.st_size, stat.st_mtime_ns))
            except OSError:  # a file that is listed but missing is reported when it is read
                digest.update(os.fsencode(path) + b"\0missing\0")
        return digest.hexdigest()


class ArraySource:
    """Images that are already in memory.

    Args:
        images: uint8 [N, C, H, W].
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self._key = ""

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return self.images.shape[0]

    def native_size(self) -> int:
        """Return the shorter side in pixels."""
        return min(self.images.shape[-2:])

    def read(self, positions: Positions, size: int, out: Tensor) -> dict[int, BadImageError]:
        """Copy or shrink; see :class:`PixelSource`."""
        for start in range(0, len(positions), 256):
            rows = self.images[torch.from_numpy(positions[start : start + 256])]
            out[start : start + len(rows)] = square_crop_tensor(rows, size)
        return {}

    def content_key(self) -> str:
        """Return a hash of the pixels."""
        if not self._key:
            self._key = hash_tensor(self.images)
        return self._key


def square_crop_tensor(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side of uint8 [N, C, H, W] to ``size`` (bilinear, antialias) and crop the centre."""
    height, width = images.shape[-2:]
    short = min(height, width)
    if short != size:
        height, width = max(size, size * height // short), max(size, size * width // short)
        images = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def hash_tensor(values: Tensor) -> str:
    """Return a hash of a CPU tensor's shape, type and bytes."""
    array = np.ascontiguousarray(values.numpy())
    digest = hashlib.blake2b(f"{array.shape}{array.dtype}".encode(), digest_size=16)
    digest.update(memoryview(array).cast("B") if array.size else b"")
    return digest.hexdigest()


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
