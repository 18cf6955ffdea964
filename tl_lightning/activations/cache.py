"""Activations of single images, computed once and kept in memory or in files."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import tl_lightning
from tl_lightning.activations.files import ActivationFiles, SegmentWriter
from tl_lightning.activations.format import DTYPES, Segment
from tl_lightning.activations.rows import Activations, located
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.paths import user_path

CacheDtype = Literal["float32", "float16", "bfloat16"]
GIB = 2**30


class ActivationCache:
    """Keeps activations so that each image passes a frozen prefix once, in all trials of a study.

    Kept for each image on its own: trials with other seeds or subsets share what they have in common. Small results
    stay in memory; larger ones, and all of them where a directory is given, lie in memory-mapped ``.npy`` files there
    (else in a temporary directory), with checksums. A directory may be shared by processes, also at the same time.
    Damaged files and files of another version are reported in one warning and made anew; a full or read-only
    directory is reported and not used.

    Args:
        directory: Where files are kept for later runs.
        max_bytes: Bound of the files; the least recently used ones go first.
        dtype: Kept as; half precision halves the size and rounds (to 11 bits, or 8 for bfloat16).
        memory_bytes: Bound of what is kept in memory; by default ``max_bytes``, at most 1 GiB.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        max_bytes: int = 8 * GIB,
        dtype: CacheDtype = "float32",
        memory_bytes: int | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise unknown_name("dtype of the activation cache", dtype, DTYPES)
        if max_bytes < 0:
            raise UserError(f"max_bytes of the activation cache must be at least 0, not {max_bytes}")
        self.dtype = dtype
        self.memory_bytes = min(max_bytes, GIB) if memory_bytes is None else memory_bytes
        self.on_disk = directory is not None
        self._max_bytes = max_bytes
        self._directory = user_path(directory) if directory is not None else None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._files: ActivationFiles | None = None
        self._memory: OrderedDict[str, list[Segment]] = OrderedDict()

    def collect(
        self,
        groups: Mapping[str, str],
        ids: Sequence[str],
        compute: Callable[[Tensor], Iterable[Mapping[str, Tensor]]],
    ) -> dict[str, Activations | None]:
        """Return the activations of images for several groups, computing those that are not kept, in one pass.

        Args:
            groups: For each name the hash of all that the activations depend on but the images.
            ids: The id of each image, 32 hexadecimal digits; the same image, the same id.
            compute: Given positions in ``ids``, yields the activations of the images there, in this order, in pieces
                of any length, for every name.

        Returns:
            For each name the activations in the order of ``ids``; None where they could not be kept, which was said
            in a warning.
        """
        keys = {name: hashlib.sha256(f"{group} {self.dtype}".encode()).hexdigest() for name, group in groups.items()}
        found = {name: self._find(key, ids) for name, key in keys.items()}
        if all(activations is not None for activations in found.values()):
            return found
        with contextlib.ExitStack() as stack:
            for key in sorted(set(keys.values())):
                if self.on_disk:
                    stack.enter_context(self._store().lock(key))
            return self._complete(keys, ids, compute)

    def _complete(
        self,
        keys: Mapping[str, str],
        ids: Sequence[str],
        compute: Callable[[Tensor], Iterable[Mapping[str, Tensor]]],
    ) -> dict[str, Activations | None]:
        known = {name: self._segments(key) for name, key in keys.items()}
        held = {name: {i for segment in segments for i in segment.ids} for name, segments in known.items()}
        first = {i: position for position, i in reversed(list(enumerate(ids)))}
        missing = sorted(p for i, p in first.items() if any(i not in own for own in held.values()))
        lacks = {
            name: torch.tensor([ids[p] not in own for p in missing], dtype=torch.bool) for name, own in held.items()
        }
        writers = {
            name: _Writer(
                self, keys[name], [ids[p] for p, lack in zip(missing, lacks[name].tolist(), strict=True) if lack]
            )
            for name in keys
        }
        if missing:
            _record(compute(torch.tensor(missing)), writers, lacks)
        result = {}
        for name, key in keys.items():
            added = writers[name].finish()
            result[name] = located([*known[name], *added], ids) if added is not None else None
            self._forget(keep=key)
        return result

    def _find(self, key: str, ids: Sequence[str]) -> Activations | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            found = located(self._memory[key], ids)
            if found is not None:
                return found
        return located(self._segments(key), ids)

    def _segments(self, key: str) -> list[Segment]:
        held = self._memory.get(key, [])
        has_files = self.on_disk or self._files is not None
        return [*held, *self._store().read(key)] if has_files else held

    def _store(self) -> ActivationFiles:
        if self._files is None:
            if self._directory is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="tl_lightning_", ignore_cleanup_errors=True)
            directory = self._directory or Path(self._temporary.name)  # type: ignore[union-attr]
            self._files = ActivationFiles(directory, self._max_bytes, tl_lightning.__version__)
        return self._files

    def _remember(self, key: str, segment: Segment) -> None:
        self._memory.setdefault(key, []).append(segment)
        self._memory.move_to_end(key)

    def _forget(self, keep: str) -> None:
        """Drop the least recently used groups from memory until the rest is within the bound."""
        size = {key: sum(s.values.nbytes for s in segments) for key, segments in self._memory.items()}
        for key in list(self._memory):
            if sum(size.values()) <= self.memory_bytes:
                return
            if key != keep:
                del self._memory[key], size[key]


class _Writer:
    """Takes the activations of new images and keeps them in memory, in a file, or both."""

    def __init__(self, cache: ActivationCache, key: str, ids: Sequence[str]) -> None:
        self._cache = cache
        self._key = key
        self._ids = ids
        self._pieces: list[Tensor] = []
        self._file: SegmentWriter | None = None
        self.failed = False

    def add(self, values: Tensor) -> None:
        """Take the next rows."""
        values = self._converted(values)
        if not self._pieces and self._file is None and not self.failed:
            size = len(self._ids) * values[0].nbytes
            if size > self._cache.memory_bytes:
                self._file = self._open_file(values)
                self.failed = self._file is None
        if self._file is not None:
            self._file.add(values)
            self.failed = self._file.failed
        elif not self.failed:
            self._pieces.append(values)

    def finish(self) -> list[Segment] | None:
        """Return the new segments, none where there is nothing new; None where they could not be kept."""
        if self._file is not None:
            segment = self._file.commit()
            return None if segment is None else [segment]
        if self.failed:
            return None
        if not self._pieces:
            return []
        segment = Segment(self._ids, torch.cat(self._pieces))
        self._cache._remember(self._key, segment)
        if self._cache.on_disk:
            file = self._open_file(segment.values)
            if file is not None:
                file.add(segment.values)
                file.commit()
        return [segment]

    def abort(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            self._file.abort()

    def _open_file(self, values: Tensor) -> SegmentWriter | None:
        return self._cache._store().write(self._key, self._ids, self._cache.dtype, values.shape[1:])

    def _converted(self, values: Tensor) -> Tensor:
        converted = values.detach().to("cpu", getattr(torch, self._cache.dtype))
        if self._cache.dtype == "float16" and not converted.isfinite().all() and values.isfinite().all():
            raise UserError(
                f"activations of up to {float(values.abs().max()):.3g} do not fit in float16: "
                "use bfloat16 or float32 for the activation cache"
            )
        return converted


def _record(
    pieces: Iterable[Mapping[str, Tensor]], writers: Mapping[str, _Writer], lacks: Mapping[str, Tensor]
) -> None:
    """Hand each writer the rows that it lacks; stop where none can keep them, or on an error."""
    start = 0
    try:
        for piece in pieces:
            length = len(next(iter(piece.values())))
            for name, writer in writers.items():
                own = lacks[name][start : start + length]
                if own.any():
                    writer.add(piece[name] if own.all() else piece[name][own.to(piece[name].device)])
            start += length
            if all(writer.failed for writer in writers.values()):
                return
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise
