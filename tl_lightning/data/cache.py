"""Decoded images on disk: a plain ``.npy`` array and a JSON note beside it, so that nothing is ever unpickled.

An entry counts once its note is there; both files are written under a temporary name and renamed. The note holds a
checksum, so that a truncated or altered array is found and decoded again, never used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from tl_lightning.data.decoding import BadImageError
from tl_lightning.data.sources import PixelSource
from tl_lightning.paths import user_path

FORMAT = 2  # raise it when images are decoded differently: older entries, and trials, are then left alone
LIMIT_BYTES = 64 * 2**30  # entries used longest ago are removed above this

_log = logging.getLogger(__name__)
_BLOCK = 64 * 2**20
_LEFTOVER_SECONDS = 24 * 3600


def cache_root(cache_dir: str | Path | None) -> Path:
    """Return the cache folder: the argument, else ``$TL_LIGHTNING_CACHE``, else ``~/.cache/tl_lightning``."""
    chosen = cache_dir or os.environ.get("TL_LIGHTNING_CACHE") or Path.home() / ".cache" / "tl_lightning"
    return user_path(chosen)


class DecodedCache:
    """One entry: all images of a source, decoded at one size.

    Args:
        folder: The cache folder.
        source: Where the images come from; its content is part of the key.
        size: Side of the decoded squares.
        content: The source's content key, if it is known already.
    """

    def __init__(self, folder: Path, source: PixelSource, size: int, content: str | None = None) -> None:
        self.source = source
        self.shape = (len(source), source.channels, size, size)
        self.image_bytes = source.channels * size * size
        self.nbytes = len(source) * self.image_bytes
        text = f"{FORMAT} {self.shape} {content or source.content_key()}"
        self.key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.folder = folder / "decoded"
        self.array_path = self.folder / f"{self.key}.npy"
        self.note_path = self.folder / f"{self.key}.json"

    def exists(self) -> bool:
        """Whether the entry is there."""
        return self.note_path.is_file()

    def load(self, into_memory: bool) -> tuple[Tensor, dict[int, BadImageError]] | None:
        """Return the images, in memory or memory-mapped, and those that could not be read; None without an entry.

        A damaged entry is reported in one line and removed. So is, silently, one in which an image failed that can be
        read by now: that it could not may have been the disk's or the permissions' fault.
        """
        if not self.exists():
            return None
        try:
            note = json.loads(self.note_path.read_text(encoding="utf-8"))
            mode: Literal["c"] | None = None if into_memory else "c"  # copy on write: nobody can change the file
            images = np.load(self.array_path, mmap_mode=mode, allow_pickle=False)
            if images.shape != self.shape or images.dtype != np.uint8 or _checksum(images) != note["crc32"]:
                raise ValueError("checksum or shape differs")
            failures = {int(p): BadImageError(path, reason) for p, (path, reason) in note["failures"].items()}
            os.utime(self.note_path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            warnings.warn(f"decoded images in {self.array_path} are damaged ({error}): decoding again", stacklevel=2)
            self._remove(self.note_path)
            return None
        if failures and len(self._still_failing(failures)) < len(failures):
            self._remove(self.note_path)
            return None
        return torch.from_numpy(images), failures

    def _still_failing(self, failures: Mapping[int, BadImageError]) -> dict[int, BadImageError]:
        positions = np.array(sorted(failures), dtype=np.int64)
        out = torch.empty((len(positions), *self.shape[1:]), dtype=torch.uint8)
        return self.source.read(positions, self.shape[-1], out)

    def decode(self) -> bool:
        """Decode the whole source into the cache, a block at a time; False (with a line) where it cannot be written."""
        rows = max(1, _BLOCK // max(1, int(np.prod(self.shape[1:]))))
        block = torch.empty((min(rows, self.shape[0]), *self.shape[1:]), dtype=torch.uint8)
        failures: dict[int, BadImageError] = {}
        _log.info("decoding %d images to %d px into %s", self.shape[0], self.shape[-1], self.folder)

        def write_blocks(file: BinaryIO) -> int:
            crc = 0
            for start in range(0, self.shape[0], rows):
                positions = np.arange(start, min(start + rows, self.shape[0]))
                part = block[: len(positions)]
                failures.update(self.source.read(positions, self.shape[-1], part))
                crc = zlib.crc32(_bytes(part.numpy()), crc)
                file.write(_bytes(part.numpy()))
            return crc

        return self._write(write_blocks, failures)

    def save(self, images: Tensor, failures: Mapping[int, BadImageError]) -> bool:
        """Write decoded images; False (with a line) where that cannot be done."""

        def write_all(file: BinaryIO) -> int:
            file.write(_bytes(images.numpy()))
            return _checksum(images.numpy())

        return self._write(write_all, failures)

    def _write(self, write: Callable[[BinaryIO], int], failures: Mapping[int, BadImageError]) -> bool:
        stem = f"{self.key}.{uuid.uuid4().hex}"
        temporary = [self.folder / f"{stem}.npy.tmp", self.folder / f"{stem}.json.tmp"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary[0].open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
                npy.write_array_header_1_0(file, header)
                crc = write(file)
            listed = {str(position): [error.path, error.reason] for position, error in failures.items()}
            note = {"format": FORMAT, "shape": self.shape, "crc32": crc, "failures": listed}
            temporary[1].write_text(json.dumps(note), encoding="utf-8")
            os.replace(temporary[0], self.array_path)
            os.replace(temporary[1], self.note_path)
        except OSError as error:
            for path in temporary:
                self._remove(path)
            warnings.warn(f"cannot keep decoded images in {self.folder} ({error}): going on without", stacklevel=2)
            return False
        self._trim()
        return True

    def _trim(self) -> None:
        """Remove what killed writers left, and the entries used longest ago while all are above the limit."""
        for leftover in self.folder.glob("*.tmp"):
            if time.time() - _last_used(leftover) > _LEFTOVER_SECONDS:
                self._remove(leftover)
        notes = [path for path in self.folder.glob("*.json") if path != self.note_path]
        arrays = {path: path.with_suffix(".npy") for path in notes}
        sizes = {path: _size(array) for path, array in arrays.items()}
        total = _size(self.array_path) + sum(sizes.values())
        for note in sorted(sizes, key=_last_used):
            if total <= LIMIT_BYTES:
                return
            total -= sizes[note]
            self._remove(note)
            self._remove(arrays[note])

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return  # a read-only cache stays as it is


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process removed it
        return 0


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process removed it
        return time.time()


def _bytes(array: NDArray[np.uint8]) -> memoryview:
    contiguous = np.ascontiguousarray(array).reshape(-1)
    return memoryview(contiguous)


def _checksum(array: NDArray[np.uint8]) -> int:
    flat = array.reshape(-1)
    crc = 0
    for start in range(0, len(flat), _BLOCK):
        crc = zlib.crc32(memoryview(flat[start : start + _BLOCK]), crc)
    return crc
