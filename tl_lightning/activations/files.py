"""Activations in files: checked when read, complete or absent when written, bounded, shared between processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from torch import Tensor

from tl_lightning.activations.format import (
    DTYPES,
    FORMAT,
    Description,
    Segment,
    data_file,
    megabytes,
    to_array,
    to_tensor,
)

_ABANDONED = 3600.0  # seconds without a write after which an unfinished file is taken for a dead writer's


class ActivationFiles:
    """A directory of activations in ``.npy`` files, each with a ``.json`` that says what it holds.

    A group is the hash of everything that the activations depend on but the images. Files that are damaged, or were
    written by another version, are reported in one warning and removed; so are the least recently used ones (without
    a warning) where new ones would pass the bound.

    Args:
        directory: Where the files lie; made when first written to.
        max_bytes: Bound of all files together.
        version: Code version; only files of the same version are used.
    """

    def __init__(self, directory: Path, max_bytes: int, version: str) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.version = version
        self._verified: set[tuple[str, int, int]] = set()

    def read(self, group: str) -> list[Segment]:
        """Return all sound segments of a group, memory-mapped."""
        found = []
        for path in sorted(self.directory.glob(f"{group[:32]}.*.json")):
            try:
                segment = self._open(path, group)
            except FileNotFoundError:
                continue  # removed by another process in the meantime
            except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
                self._reject(path, error)
                continue
            found.append(segment)
            with contextlib.suppress(OSError):  # a read-only directory keeps its order of use
                os.utime(path)
        return found

    def write(self, group: str, ids: Sequence[str], dtype: str, row_shape: Sequence[int]) -> SegmentWriter | None:
        """Return a writer of a new segment, or None (and one warning) where it would not fit."""
        size = len(ids) * int(np.prod(row_shape)) * DTYPES[dtype].itemsize
        try:
            if size > self.max_bytes:
                raise OSError(f"{megabytes(size)} pass the bound of {megabytes(self.max_bytes)}")
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            self._make_room(size)
            free = shutil.disk_usage(self.directory).free
            if size > free:
                raise OSError(f"{megabytes(size)} do not fit in the {megabytes(free)} that are free")
            return SegmentWriter(self, group, ids, dtype, (len(ids), *row_shape))
        except OSError as error:
            self.warn_not_kept(error)
            return None

    @contextlib.contextmanager
    def lock(self, group: str) -> Iterator[None]:
        """Hold a group for this process, so that others wait for its files; freed by the system if it dies."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, ImportError):
                import fcntl  # absent on Windows, where two processes may compute the same

                self.directory.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(self.directory / f"{group[:32]}.lock", "w"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def open_new(self, path: Path, group: str) -> Segment:
        """Open a segment that this process has just written, and hashed while it did."""
        self._verified.add(_state(data_file(path)))
        return self._open(path, group)

    def warn_not_kept(self, error: Exception) -> None:
        """Say in one line that activations are not kept in files."""
        reason = str(error).splitlines()[0]
        warnings.warn(f"activation cache: nothing is kept in {self.directory}: {reason}", stacklevel=2)

    def _open(self, path: Path, group: str) -> Segment:
        description = Description.parse(path.read_text())
        if (description.format, description.version) != (FORMAT, self.version):
            raise ValueError(f"was written by version {description.version} (format {description.format})")
        if description.group != group:
            raise ValueError("belongs to other activations")
        data = self.directory / description.file
        self._verify(data, description, path)
        array = np.load(data, mmap_mode="c", allow_pickle=False)
        ids = description.id_list
        if len(array) != len(ids) or array.dtype != DTYPES[description.dtype]:
            raise ValueError("its shape is not the one described")
        return Segment(ids, to_tensor(array, description.dtype))

    def _verify(self, data: Path, description: Description, path: Path) -> None:
        """Compare the checksum, once in this process for each state of the file."""
        try:
            state = _state(data)
        except FileNotFoundError:
            if not path.exists():
                raise
            raise ValueError("its data file is missing") from None
        if state in self._verified:
            return
        if state[2] != description.size:
            raise ValueError(f"its data file has {state[2]} bytes instead of {description.size}")
        with open(data, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != description.sha256:
                raise ValueError("the checksum of its data file differs")
        self._verified.add(state)

    def _reject(self, path: Path, error: Exception) -> None:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"activation cache: {path} is not used and made anew: {reason}", stacklevel=3)
        self._remove(path)

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            data_file(path).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        used: list[tuple[float, int, Path]] = []
        for path in self.directory.glob("*.json"):
            with contextlib.suppress(OSError):
                used.append((path.stat().st_mtime, data_file(path).stat().st_size, path))
        total = sum(entry[1] for entry in used) + size
        for _, bytes_, path in sorted(used):
            if total <= self.max_bytes:
                return
            self._remove(path)
            total -= bytes_

    def _remove_abandoned(self) -> None:
        """Remove what killed writers left: unfinished files, and data files without a description."""
        for path in [*self.directory.glob("*.tmp"), *self.directory.glob("*.npy")]:
            with contextlib.suppress(OSError):
                orphan = path.suffix == ".tmp" or not path.with_suffix(".json").exists()
                if orphan and time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()


class SegmentWriter:
    """Writes one segment row by row to a temporary file, which ``commit`` gives its name.

    Attributes:
        failed: Whether writing failed; that was said in a warning, and nothing is kept.
    """

    def __init__(self, files: ActivationFiles, group: str, ids: Sequence[str], dtype: str, shape: tuple[int, ...]):
        self.failed = False
        self._files = files
        self._group = group
        self._ids = ids
        self._dtype = dtype
        self._path = files.directory / f"{group[:32]}.{uuid.uuid4().hex[:12]}.json"
        self._temporary = self._path.with_suffix(".npy.tmp")
        self._digest = hashlib.sha256()
        self._file: IO[bytes] = open(self._temporary, "wb")  # noqa: SIM115 - closed by commit or abort
        header = {"descr": npy.dtype_to_descr(DTYPES[dtype]), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(_Tee(self._file, self._digest), header)

    def add(self, values: Tensor) -> None:
        """Write the next rows, on the CPU and of the segment's dtype."""
        if self.failed:
            return
        try:
            _Tee(self._file, self._digest).write(to_array(values).tobytes())
        except OSError as error:
            self._fail(error)

    def commit(self) -> Segment | None:
        """Finish the file and return the segment, memory-mapped; None where writing failed."""
        if self.failed:
            return None
        try:
            self._file.close()
            size = self._temporary.stat().st_size
            os.replace(self._temporary, data_file(self._path))
            description = Description(
                format=FORMAT,
                version=self._files.version,
                group=self._group,
                file=data_file(self._path).name,
                size=size,
                sha256=self._digest.hexdigest(),
                dtype=self._dtype,
                ids="".join(self._ids),
            )
            unfinished = self._path.with_suffix(".json.tmp")
            unfinished.write_text(description.text())
            os.replace(unfinished, self._path)
            return self._files.open_new(self._path, self._group)
        except OSError as error:
            self._fail(error)
            return None

    def abort(self) -> None:
        """Remove the unfinished file."""
        self.failed = True
        with contextlib.suppress(OSError):
            self._file.close()
        for path in (self._temporary, data_file(self._path), self._path.with_suffix(".json.tmp")):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        self.abort()
        self._files.warn_not_kept(error)


class _Tee:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file = file
        self._hash = digest

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self._hash.update(data)
        return self._file.write(data)


def _state(path: Path) -> tuple[str, int, int]:
    """Return what changes when a file does."""
    found = path.stat()
    return str(path), found.st_mtime_ns, found.st_size
