"""Damaged, foreign, full and read-only cache directories are reported, never used silently."""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cached_rows import IDS, ROWS, collect, files, no_warning, one_warning

from tl_lightning.features import (
    ActivationCache,
)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-16])


def rewrite(key: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


@contextmanager
def read_only(directory: str) -> Iterator[None]:
    """Fill a cache, then let nobody write to its directory."""
    collect(ActivationCache(directory), ids=IDS[:20])
    os.chmod(directory, 0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        yield
    finally:
        os.seteuid(user)
        os.chmod(directory, 0o755)


@pytest.mark.parametrize("memory_bytes", [0, 2**20])
@pytest.mark.parametrize(
    ("suffix", "damage", "reason"),
    [
        (".npy", flip_byte, "checksum"),
        (".npy", truncate, "bytes instead of"),
        (".npy", Path.unlink, "missing"),
        (".json", flip_byte, "not used"),
        (".json", truncate, "not used"),
        (".json", rewrite("dtype", "float16"), "own checksum"),
        (".json", lambda path: path.write_text("[]"), "not used"),
        (".json", lambda path: path.write_bytes(b"\xff\xfe"), "not used"),
    ],
)
def test_damaged_files_are_reported_and_made_anew(tmp_path, suffix, damage, reason, memory_bytes):
    collect(ActivationCache(tmp_path))
    damage(files(tmp_path, suffix)[0])
    with one_warning(reason):
        values, computed = collect(ActivationCache(tmp_path, memory_bytes=memory_bytes))
    assert torch.equal(values, ROWS)
    assert computed == list(range(40))
    with no_warning():
        assert collect(ActivationCache(tmp_path))[1] == []


def test_files_of_another_version_are_reported_and_made_anew(tmp_path, monkeypatch):
    import tl_lightning

    monkeypatch.setattr(tl_lightning, "__version__", "0.0.1")
    collect(ActivationCache(tmp_path))
    monkeypatch.undo()
    with one_warning("was written by version 0.0.1"):
        assert collect(ActivationCache(tmp_path))[1] == list(range(40))
    assert len(files(tmp_path, ".npy")) == 1


@pytest.mark.parametrize("memory_bytes", [0, 2**20])
def test_a_disk_that_fills_up_is_reported_and_leaves_nothing(tmp_path, memory_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # the system then refuses the write in the middle
    try:
        with one_warning("nothing is kept"):
            values, _ = collect(ActivationCache(tmp_path, memory_bytes=memory_bytes))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (values is None) if memory_bytes == 0 else torch.equal(values, ROWS)
    assert files(tmp_path, ".npy") == files(tmp_path, ".tmp") == files(tmp_path, ".json") == []


@pytest.mark.parametrize("memory_bytes", [0, 2**20])
def test_a_result_above_the_bound_is_reported(tmp_path, memory_bytes):
    with one_warning("pass the bound"):
        values, _ = collect(ActivationCache(tmp_path, max_bytes=100, memory_bytes=memory_bytes))
    assert (values is None) == (memory_bytes == 0)


@pytest.mark.parametrize("memory_bytes", [0, 2**20])
def test_a_read_only_directory_is_read_but_not_written(memory_bytes):
    with tempfile.TemporaryDirectory() as name, read_only(name):
        with no_warning():
            assert collect(ActivationCache(name, memory_bytes=memory_bytes), ids=IDS[:20])[1] == []
        with one_warning("ermission"):
            values, computed = collect(ActivationCache(name, memory_bytes=memory_bytes))
    assert computed[0] == 20
    assert (values is None) if memory_bytes == 0 else torch.equal(values, ROWS)


def test_a_directory_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with one_warning("nothing is kept"):
        values, _ = collect(ActivationCache(tmp_path / "file" / "cache"))
    assert torch.equal(values, ROWS)


def test_an_error_while_computing_leaves_nothing(tmp_path):
    def fail(positions):
        yield {"a": ROWS[:7]}
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        ActivationCache(tmp_path, memory_bytes=0).collect({"a": "g"}, IDS, fail)
    assert files(tmp_path, ".npy") == files(tmp_path, ".tmp") == files(tmp_path, ".json") == []


def test_what_dead_writers_left_is_removed(tmp_path):
    old, new = tmp_path / "x.123.npy.tmp", tmp_path / "y.123.npy.tmp"
    orphan = tmp_path / "z.123.npy"
    for path in (old, new, orphan):
        path.touch()
    for path in (old, orphan):
        os.utime(path, (time.time() - 7200,) * 2)
    collect(ActivationCache(tmp_path))
    assert not old.exists()
    assert not orphan.exists()
    assert new.exists()
