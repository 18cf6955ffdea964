"""What is computed once, kept, shared and bounded."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_rows import IDS, ROWS, Counter, collect, files, no_warning

from tl_lightning.errors import UserError
from tl_lightning.features import (
    ActivationCache,
)


@pytest.mark.parametrize("on_disk", [False, True])
def test_everything_is_computed_once(tmp_path, on_disk):
    cache = ActivationCache(tmp_path if on_disk else None)
    first, computed = collect(cache)
    assert torch.equal(first, ROWS)
    assert computed == list(range(40))
    again, computed = collect(cache)
    assert torch.equal(again, ROWS)
    assert computed == []


@pytest.mark.parametrize("on_disk", [False, True])
def test_only_new_images_are_computed(tmp_path, on_disk):
    cache = ActivationCache(tmp_path if on_disk else None)
    collect(cache, ids=IDS[10:20])
    values, computed = collect(cache, ids=IDS[25:5:-1])
    assert sorted(computed) == [*range(6, 10), *range(20, 26)]
    assert torch.equal(values, ROWS.flip(0)[14:34])
    assert collect(cache, ids=IDS[6:26])[1] == []


def test_an_image_that_occurs_twice_is_computed_once():
    values, computed = collect(ActivationCache(), ids=[IDS[3], IDS[1], IDS[3]])
    assert torch.equal(values, ROWS[[3, 1, 3]])
    assert computed == [3, 1]


def test_groups_are_apart_and_share_one_pass():
    cache = ActivationCache()
    counter = Counter(("a", "b"))
    cache.collect({"a": "one"}, IDS[:10], Counter())
    found = cache.collect({"a": "one", "b": "two"}, IDS, counter)
    assert torch.equal(found["a"].all(), ROWS)
    assert torch.equal(found["b"].all(), 2 * ROWS)
    assert counter.computed == list(range(40))
    assert collect(cache, "one")[1] == collect(cache, "two")[1] == []


def test_files_serve_a_later_process(tmp_path):
    collect(ActivationCache(tmp_path))
    with no_warning():
        values, computed = collect(ActivationCache(tmp_path))
    assert torch.equal(values, ROWS)
    assert computed == []


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("memory_bytes", [0, 2**20])
def test_dtypes(tmp_path, dtype, bits, memory_bytes):
    for _ in range(2):
        values, _ = collect(ActivationCache(tmp_path, dtype=dtype, memory_bytes=memory_bytes))
        assert values.dtype == torch.float32
        assert ((values - ROWS).abs() <= ROWS.abs() * 2.0**-bits).all()
    (path,) = files(tmp_path, ".npy")
    assert np.load(path, allow_pickle=False).shape == (40, 5)
    assert collect(ActivationCache(tmp_path, dtype="float32"))[1] == ([] if dtype == "float32" else list(range(40)))


def test_what_float16_cannot_hold_is_refused():
    with pytest.raises(UserError, match="bfloat16"):
        ActivationCache(dtype="float16").collect({"a": "g"}, IDS[:1], lambda p: iter([{"a": torch.full((1, 2), 1e6)}]))


def test_large_results_lie_in_a_temporary_directory():
    cache = ActivationCache(memory_bytes=100)
    values, _ = collect(cache)
    assert torch.equal(values, ROWS)
    directory = Path(cache._temporary.name)
    assert len(files(directory, ".npy")) == 1
    assert collect(cache)[1] == []
    del cache
    assert not directory.exists()


def test_memory_is_bounded_least_recently_used_first():
    cache = ActivationCache(memory_bytes=2 * ROWS.nbytes)
    collect(cache, "one")
    collect(cache, "two")
    collect(cache, "one")
    collect(cache, "three")
    assert collect(cache, "one")[1] == []
    assert collect(cache, "two")[1] != []


def test_disk_is_bounded_least_recently_used_first(tmp_path):
    def cache():
        return ActivationCache(tmp_path, max_bytes=int(2.7 * ROWS.nbytes), memory_bytes=0)

    for group in ("one", "two", "one", "three"):
        collect(cache(), group)
        time.sleep(0.02)
    assert sum(p.stat().st_size for p in files(tmp_path, ".npy")) <= 2.7 * ROWS.nbytes
    assert collect(cache(), "one")[1] == []
    assert collect(cache(), "two")[1] != []


def test_mistakes():
    with pytest.raises(UserError, match="bfloat16"):
        ActivationCache(dtype="bfloat")
    with pytest.raises(UserError, match="max_bytes"):
        ActivationCache(max_bytes=-1)
