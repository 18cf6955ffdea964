"""Decoded images on disk are the decoded images, and damage, a full disk or a read-only folder costs only time."""

from __future__ import annotations

import json
import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture, write_folder

from tl_lightning.data import TransferDataModule, cache, sources, store
from tl_lightning.data.decoding import BadImageError
from tl_lightning.data.pixels import DecodedPixels, MappedPixels, StreamedPixels, TensorPixels
from tl_lightning.data.sources import FileSource


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", {"a": 20, "b": 20})


@pytest.fixture(autouse=True)
def small_sets_count_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "WORTH_KEEPING", 10)


def ready(root: Path, **kwargs) -> TransferDataModule:
    """Open the folder as a new process would."""
    store._shared.clear()
    data = TransferDataModule("imagefolder", str(root), image_size=16, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup()
    return data


def entry(folder: Path) -> tuple[Path, Path]:
    (array,) = (folder / "decoded").glob("*.npy")
    (note,) = (folder / "decoded").glob("*.json")
    return array, note


def test_a_second_opening_reads_the_decoded_images(root: Path, own_cache: Path) -> None:
    first = ready(root)
    assert isinstance(first.train_set.pixels, DecodedPixels)
    array, _ = entry(own_cache)
    assert np.load(array, allow_pickle=False).shape == (40, 3, 16, 16)
    second = ready(root)
    assert isinstance(second.train_set.pixels, TensorPixels)
    assert torch.equal(first.train_set.images, second.train_set.images)
    assert first.fingerprint("train") == second.fingerprint("train")


def test_a_large_set_is_memory_mapped(root: Path, own_cache: Path) -> None:
    in_memory = ready(root)
    for _ in range(2):
        mapped = ready(root, memory_limit_mb=0)
        assert isinstance(mapped.train_set.pixels, MappedPixels)
        assert torch.equal(in_memory.train_set.images, mapped.train_set.images)
    array, _ = entry(own_cache)
    before = array.read_bytes()
    mapped.train_set.pixels.images.zero_()
    assert array.read_bytes() == before


def test_trials_of_one_process_share_decoded_images(root: Path) -> None:
    first = ready(root)
    second = TransferDataModule("imagefolder", str(root), image_size=16, seed=1)
    second.setup()
    assert first.train_set.pixels is second.train_set.pixels


def test_a_small_subset_decodes_nothing_else(root: Path, own_cache: Path) -> None:
    data = ready(root, samples_per_class=2, val_samples=2, test_samples=2)
    assert data.train_set.pixels.nbytes == 8 * 3 * 16 * 16
    assert not (own_cache / "decoded").exists()


def test_images_decoded_in_another_order_are_kept_in_the_right_one(root: Path, own_cache: Path) -> None:
    whole = ready(root).train_set.pixels.gather(torch.arange(40))
    for path in entry(own_cache):
        path.unlink()
    ready(root, samples_per_class=2, val_samples=2, test_samples=2)
    TransferDataModule("imagefolder", str(root), image_size=16).setup()
    assert np.array_equal(np.load(entry(own_cache)[0]), whole.numpy())


def test_memory_is_bounded_over_trials_of_a_set_that_does_not_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = 3 * 16 * 16
    storage = store.Storage(Path("unused"), memory_limit=12 * image)
    source = FileSource([str(path) for path in sorted(root.rglob("*.png"))])
    store._shared.clear()
    for start in range(0, 32, 4):
        pixels, _ = store.open_pixels(source, 16, np.arange(start, start + 8), storage)
        assert pixels.nbytes <= 12 * image
        assert len(pixels.gather(torch.arange(start, start + 8))) == 8


def test_changed_files_are_decoded_again(root: Path) -> None:
    before = ready(root)
    picture(777).save(root / "a" / "000.png")
    after = ready(root)
    gathered = [data.train_set.pixels.gather(torch.arange(40)) for data in (before, after)]
    assert not torch.equal(gathered[0][0], gathered[1][0])
    assert torch.equal(gathered[0][1:], gathered[1][1:])


def flip_a_byte(array: Path, note: Path) -> None:
    content = bytearray(array.read_bytes())
    content[-100] ^= 1
    array.write_bytes(bytes(content))


def truncate(array: Path, note: Path) -> None:
    array.write_bytes(array.read_bytes()[:-50])


def empty_array(array: Path, note: Path) -> None:
    array.write_bytes(b"")


def lose_array(array: Path, note: Path) -> None:
    array.unlink()


def garble_note(array: Path, note: Path) -> None:
    note.write_text('{"crc32": ')


def note_of_another_kind(array: Path, note: Path) -> None:
    note.write_text("[1, 2]")


def note_without_checksum(array: Path, note: Path) -> None:
    note.write_text(json.dumps({"failures": {}}))


def pickled_array(array: Path, note: Path) -> None:
    np.save(array, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("limit", [2048, 0])
@pytest.mark.parametrize(
    "damage",
    [
        *(flip_a_byte, truncate, empty_array, lose_array, garble_note),
        *(note_of_another_kind, note_without_checksum, pickled_array),
    ],
)
def test_damage_is_reported_and_decoded_again(
    root: Path, own_cache: Path, damage: Callable[[Path, Path], None], limit: int
) -> None:
    images = ready(root, memory_limit_mb=limit).train_set.images.clone()
    damage(*entry(own_cache))
    store._shared.clear()
    data = TransferDataModule("imagefolder", str(root), image_size=16, memory_limit_mb=limit)
    with pytest.warns(UserWarning, match="damaged .* decoding again"):
        data.setup()
    assert torch.equal(data.train_set.images, images)
    assert torch.equal(ready(root, memory_limit_mb=limit).train_set.images, images)


def test_a_folder_that_cannot_be_written_is_done_without(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    images = ready(root).train_set.images
    for limit, kind in ((2048, DecodedPixels), (0, StreamedPixels)):
        store._shared.clear()
        data = TransferDataModule(
            "imagefolder", str(root), image_size=16, cache_dir=str(tmp_path / "file"), memory_limit_mb=limit
        )
        with pytest.warns(UserWarning, match="cannot keep decoded images"):
            data.setup()
        assert isinstance(data.train_set.pixels, kind)
        assert torch.equal(data.train_set.images, images)


def test_a_full_disk_is_done_without_and_leaves_nothing(root: Path, own_cache: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = TransferDataModule("imagefolder", str(root), image_size=16, memory_limit_mb=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # writing beyond fails as on a full disk
    try:
        with pytest.warns(UserWarning, match="cannot keep decoded images"):
            data.setup()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((own_cache / "decoded").iterdir()) == []
    assert len(data.train_set.images) == len(data.train_set)


def test_unreadable_images_are_remembered(root: Path) -> None:
    (root / "b" / "003.png").write_bytes(b"")
    for limit in (2048, 0):
        for _ in range(2):
            data = ready(root, on_bad_image="skip", memory_limit_mb=limit)
            assert data.skipped == 1
            assert 23 not in data.train_set.indices


def test_what_was_used_longest_ago_is_removed(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 70_000)  # two entries of 40 images of 3 x 16 x 16 bytes and a bit
    roots = [write_folder(tmp_path / str(number), {"a": 20, "b": 20}) for number in range(3)]
    paths = []
    for number, root in enumerate(roots):
        ready(root)
        (newest,) = set((own_cache / "decoded").glob("*.json")) - set(paths)
        paths.append(newest)
        timestamp = 1_000_000 + number
        os.utime(newest, (timestamp, timestamp))
    assert [path.exists() for path in paths] == [False, True, True]
    assert len(list((own_cache / "decoded").glob("*.npy"))) == 2


def test_decoding_in_threads_gives_the_same(root: Path) -> None:
    paths = sorted(str(path) for path in root.rglob("*.png")) * 3
    positions = np.arange(len(paths))
    outs = [torch.zeros(len(paths), 3, 16, 16, dtype=torch.uint8) for _ in range(2)]
    for out, threads in zip(outs, (1, 4), strict=True):
        FileSource(paths, threads=threads).read(positions, 16, out)
    assert torch.equal(*outs)


def test_an_image_that_could_not_be_read_for_a_while_is_read_again(
    root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = root / "a" / sorted(os.listdir(root / "a"))[0]
    decode = sources.decode_image

    def refused(path: str, size: int, channels: int):
        if Path(path) == locked:
            raise BadImageError(path, "Permission denied")
        return decode(path, size, channels)

    with monkeypatch.context() as patched:
        patched.setattr(sources, "decode_image", refused)
        store._shared.clear()
        for _ in range(2):  # from the files, then from the disk
            data = TransferDataModule("imagefolder", str(root), image_size=16, on_bad_image="skip")
            data.setup()
            assert sum(map(len, (data.train_set, data.val_set, data.test_set))) == 39
            store._shared.clear()
    assert entry(own_cache)
    data = ready(root, on_bad_image="skip")
    assert sum(map(len, (data.train_set, data.val_set, data.test_set))) == 40
