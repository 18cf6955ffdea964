"""The data module on real packaged images and generated folders: what it serves, and that a seed fixes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_folder
from torch.nn import functional as F

from tl_lightning.data import DATASETS, TransferDataModule, corrupt
from tl_lightning.features import CachedDataModule
from tl_lightning.tasks import TransferModule


def ready(name: str = "digits", data_dir: Path | None = None, **kwargs) -> TransferDataModule:
    data = TransferDataModule(name, str(data_dir) if data_dir else None, **kwargs)
    data.setup()
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", {"ant": 30, "bee": 20, "cat": 24})


def members(data: TransferDataModule, part: str) -> set[int]:
    return set(getattr(data, f"{part}_set").indices.tolist())


def test_elpv_is_split_by_label_and_cell_type_once_for_all() -> None:
    package = pytest.importorskip("elpv_dataset")
    data, other = ready("elpv", seed=0, samples_per_class=20), ready("elpv", seed=1, samples_per_class=20)
    assert data.num_classes == 2
    assert data.class_names == ["functional", "defective"]
    assert len(data.test_set) == 656
    assert data.test_set.shape[1:] == (1, 96, 96)
    assert members(data, "test") == members(other, "test")
    assert members(data, "val") != members(other, "val")
    assert data.label_counts("test").tolist() == [451, 205]  # of 1,803 and 821: a quarter
    rows = [line.split() for line in (Path(package.__file__).parent / "data" / "labels.csv").read_text().splitlines()]
    strata = np.asarray([f"{float(probability) >= 0.5} {kind}" for _, probability, kind in rows])
    for stratum in np.unique(strata):
        held = (strata[data.test_set.indices] == stratum).sum()
        assert abs(held - (strata == stratum).sum() / 4) < 1
    assert data.label_counts().tolist() == [20, 20]
    assert 100 < data.train_set.images.float().mean() < 200


def test_digits_reach_the_model_as_documented() -> None:
    data = ready("digits", image_size=20, batch_size=16)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (16, 1, 8, 8)
    assert batch["image"].max() == 255
    moved = data.on_after_batch_transfer(batch, 0)
    assert moved["image"].shape == (16, 3, 20, 20)
    assert moved["image"].dtype == torch.float32
    assert 0 <= moved["image"].min() < moved["image"].max() <= 1
    assert torch.equal(moved["image"][:, 0], moved["image"][:, 2])
    assert torch.equal(data.train_set.images[batch["index"]], batch["image"])
    assert sum(len(part) for part in (data.train_set, data.val_set, data.test_set)) == 1797


def test_the_parts_of_a_folder_are_disjoint_and_complete(folder: Path) -> None:
    data = ready("imagefolder", folder, image_size=16)
    parts = [members(data, part) for part in ("train", "val", "test")]
    assert set.union(*parts) == set(range(74))
    assert sum(map(len, parts)) == 74
    assert data.label_counts("test").tolist() == [7, 5, 6]
    assert data.class_names == ["ant", "bee", "cat"]


def test_own_parts_of_a_folder_are_kept(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("valid", 3), ("test", 4)):
        write_folder(tmp_path / part, {"a": count, "b": count})
    data = ready("imagefolder", tmp_path, image_size=16)
    assert [len(data.train_set), len(data.val_set), len(data.test_set)] == [12, 6, 8]
    assert len(members(data, "val") & members(data, "train")) == 6  # positions in parts of their own


def test_a_seed_fixes_split_subset_noise_and_order(folder: Path) -> None:
    def fingerprints(**kwargs) -> list[str]:
        data = ready("imagefolder", folder, image_size=16, label_noise=0.2, samples_per_class=8, **kwargs)
        return [data.fingerprint(part) for part in ("train", "val", "test")]

    first, again, other = fingerprints(seed=0), fingerprints(seed=0), fingerprints(seed=1)
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert first[2] == other[2]


def test_a_fingerprint_changes_with_what_it_stands_for(folder: Path) -> None:
    base = ready("imagefolder", folder, image_size=16)
    noisy = ready("imagefolder", folder, image_size=16, label_noise=0.1)
    foggy = ready("imagefolder", folder, image_size=16, corruption="fog")
    assert noisy.fingerprint("train") != base.fingerprint("train")
    assert noisy.fingerprint("test") == base.fingerprint("test")
    assert foggy.fingerprint("test") != base.fingerprint("test")
    assert foggy.fingerprint("val") == base.fingerprint("val")
    key = base.content_key("train")
    next(iter((folder / "ant").iterdir())).touch()
    again = ready("imagefolder", folder, image_size=16)
    assert again.fingerprint("train") == base.fingerprint("train")
    assert again.content_key("train") != key
    assert ready("imagefolder", folder, image_size=18).transform_fingerprint() != base.transform_fingerprint()


def test_subsets_are_nested_and_leave_validation_alone(folder: Path) -> None:
    few, many, all_of_them = (ready("imagefolder", folder, image_size=16, samples_per_class=n) for n in (3, 9, None))
    assert members(few, "train") < members(many, "train") < members(all_of_them, "train")
    assert members(few, "val") == members(all_of_them, "val")
    capped = ready("imagefolder", folder, image_size=16, val_samples=6, test_samples=9)
    assert (len(capped.val_set), len(capped.test_set)) == (6, 9)
    assert members(capped, "val") <= members(all_of_them, "val")
    assert capped.label_counts("test").tolist() == [4, 2, 3]


def test_label_noise_is_exact_and_only_in_training(folder: Path) -> None:
    clean, noisy = (
        ready("imagefolder", folder, image_size=16),
        ready("imagefolder", folder, image_size=16, label_noise=0.5),
    )
    assert torch.equal(clean.val_set.labels, noisy.val_set.labels)
    assert torch.equal(clean.test_set.labels, noisy.test_set.labels)
    changed = (clean.train_set.labels != noisy.train_set.labels).sum()
    assert changed == round(0.5 * len(clean.train_set))


def test_a_corruption_hits_its_parts_alone(folder: Path) -> None:
    clean = ready("imagefolder", folder, image_size=16)
    shifted = ready("imagefolder", folder, image_size=16, corruption="contrast", severity=4)
    assert torch.equal(clean.train_set.images, shifted.train_set.images)
    expected = corrupt(clean.test_set.images, "contrast", 4, 0, clean.test_set.indices)
    assert torch.equal(shifted.test_set.images, expected)
    both = ready("imagefolder", folder, image_size=16, corruption="invert", corrupt_parts=("train", "test"))
    assert torch.equal(both.train_set.images, 255 - clean.train_set.images)
    assert torch.equal(both.val_set.images, clean.val_set.images)
    assert torch.equal(
        ready("imagefolder", folder, corruption="none", image_size=16).test_set.images, clean.test_set.images
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_serve_the_same_batches(folder: Path, workers: int) -> None:
    settings = {"image_size": 16, "batch_size": 7, "corruption": "fog", "corrupt_parts": ("train", "val")}
    here, there = ready("imagefolder", folder, **settings), ready("imagefolder", folder, workers=workers, **settings)
    assert here.fingerprint("train") == there.fingerprint("train")
    for epoch in (0, 3):
        loaders = [here.train_dataloader(), there.train_dataloader()]
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        batches = [list(loader) for loader in loaders]
        assert len(batches[0]) == len(batches[1]) == 7
        for mine, theirs in zip(*batches, strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in ("image", "label", "index"))


def test_resuming_with_workers_serves_the_rest(folder: Path) -> None:
    data = ready("imagefolder", folder, image_size=16, batch_size=7, workers=1)
    loader = data.train_dataloader()
    served = iter(loader)
    head = [next(served)["index"].tolist() for _ in range(3)]
    state = loader.state_dict()
    tail = [batch["index"].tolist() for batch in served]
    fresh = data.train_dataloader()
    fresh.load_state_dict(state)
    assert [batch["index"].tolist() for batch in fresh] == tail
    assert len(head + tail) == len(fresh)


def test_small_images_stay_small_and_large_ones_are_shrunk(tmp_path: Path) -> None:
    write_folder(tmp_path / "small", {"a": 5, "b": 5}, size=(12, 12))
    write_folder(tmp_path / "large", {"a": 5, "b": 5}, size=(90, 70))
    assert ready("imagefolder", tmp_path / "small", image_size=32).train_set.shape[1:] == (3, 12, 12)
    assert ready("imagefolder", tmp_path / "large", image_size=32).train_set.shape[1:] == (3, 32, 32)


def test_resizing_matches_torch() -> None:
    data = TransferDataModule("digits", image_size=24)
    images = torch.randint(0, 256, (2, 3, 10, 10), dtype=torch.uint8)
    expected = F.interpolate(images.float() / 255, size=(24, 24), mode="bilinear").clamp(0, 1)
    assert torch.equal(data.resize(images), expected)
    larger = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    antialiased = F.interpolate(larger.float() / 255, size=(24, 24), mode="bilinear", antialias=True)
    assert torch.equal(data.resize(larger), antialiased.clamp(0, 1))
    assert torch.equal(data.resize(larger[..., :24, :24]), larger[..., :24, :24].float() / 255)


def test_other_batches_pass_untouched() -> None:
    data = TransferDataModule("digits")
    batch = {"activation": torch.zeros(2, 5), "label": torch.zeros(2)}
    assert data.on_after_batch_transfer(batch, 0) is batch


def test_every_set_has_a_card() -> None:
    assert set(DATASETS) == {
        *("cifar10", "cifar100", "elpv", "digits", "fashion_mnist", "svhn", "stl10", "eurosat", "dtd"),
        *("flowers102", "oxford_pets", "food101", "pcam", "imagefolder", "scene_digits"),
    }
    for name, card in DATASETS.items():
        assert card.name == name
        assert card.imagenet_overlap
        assert card.licence
        assert card.source
        assert name == "imagefolder" or card.classes


def test_it_prints_what_it_holds_and_before_setup_what_it_is() -> None:
    data = TransferDataModule("digits", image_size=20, batch_size=16, samples_per_class=5, val_samples=30)
    assert str(data) == "TransferDataModule('digits'): 20 px, batches of 16; not set up"
    data.setup()
    images = f"{len(data.train_set):,} train, {len(data.val_set):,} val, {len(data.test_set):,} test images"
    assert str(data).splitlines()[1] == f"{images} of 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert repr(data) == str(data)
    module = TransferModule("shufflenet_v2_x0_5", 10)
    cached = CachedDataModule(data, module, module.stages.boundary_before("fc"))
    assert str(cached) == f"CachedDataModule at 'mean' of {data}"
