"""The data module for boxes and masks: what it serves, and that a seed fixes it."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from annotated import SIZE, write_masks, write_voc

from tl_lightning.data.dense import DenseDataModule
from tl_lightning.data.dense_datasets import DENSE_SETS
from tl_lightning.errors import UserError

FEW = {"train_images": 12, "val_images": 4, "test_images": 4, "image_size": 48, "batch_size": 4}


def ready(*args, **options) -> DenseDataModule:
    data = DenseDataModule(*args, **options)
    data.setup()
    return data


def served(data: DenseDataModule, loader=None):
    loader = data.train_dataloader() if loader is None else loader
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def test_detection_batches():
    data = ready(**FEW)
    batch = served(data)[0]
    assert batch.keys() == {"image", "boxes", "labels", "crowd", "index"}
    assert batch["image"].shape == (4, 3, 48, 48)
    assert batch["image"].dtype == torch.float32
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    for boxes, labels, crowd in zip(batch["boxes"], batch["labels"], batch["crowd"], strict=True):
        assert boxes.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert boxes.shape == (len(labels), 4)
        assert len(crowd) == len(labels)
        assert labels.min() >= 1
    assert data.num_classes == 10


def test_segmentation_batches():
    data = ready(task="segmentation", **FEW)
    batch = served(data)[0]
    assert batch.keys() == {"image", "mask", "index"}
    assert batch["mask"].shape == (4, 48, 48)
    assert batch["mask"].dtype == torch.int64
    assert data.num_classes == 11
    assert data.class_names[0] == "background"


def test_index_is_the_position_in_the_part():
    data = ready(**FEW)
    for batch in served(data):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            assert torch.equal(image, data.train_set.images[index].float() / 255)


def test_boxes_and_masks_are_resized_with_their_images(tmp_path):
    root = write_voc(tmp_path / "voc", images=8)
    data = ready("voc_boxes", str(root), image_size=(80, 90))  # images are 40 x 60
    for example, number in zip(data.train_set.examples, data.train_set.indices.tolist(), strict=True):
        assert example.image.shape == (3, 80, 90)
        assert example.boxes[0].tolist() == [number * 1.5, 10, (number + 20) * 1.5, 50]
    root = write_masks(tmp_path / "masks", values=(0, 1, 9))
    masks = ready("mask_folder", str(root), image_size=(72, 100), void_ids=(9,))
    for example in masks.train_set.examples:
        assert example.mask.shape == (72, 100)
        assert set(np.unique(example.mask)) == {0, 1, 255}


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    def order(data, epoch):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch["index"] for batch in loader]).tolist()

    data = ready(**FEW)
    assert order(data, 0) == order(ready(**FEW), 0)
    assert order(data, 0) != order(data, 1)
    assert order(data, 0) != order(ready(seed=1, **FEW), 0)
    assert sorted(order(data, 1)) == list(range(12))


def test_loading_goes_on_in_mid_epoch():
    data = ready(**FEW)
    loader = data.train_dataloader()
    iterator = iter(loader)
    next(iterator)
    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    rest = [batch["index"].tolist() for batch in iterator]
    assert [batch["index"].tolist() for batch in resumed] == rest
    assert len(rest) == 2


def test_smaller_subsets_are_nested_in_larger_ones():
    subsets = {}
    for seed in (0, 1):
        for count in (5, 20, 80):
            options = {**FEW, "train_images": count}
            subsets[seed, count] = set(ready(seed=seed, **options).train_set.indices.tolist())
            assert len(subsets[seed, count]) == count
        assert subsets[seed, 5] < subsets[seed, 20] < subsets[seed, 80]
    assert subsets[0, 80] != subsets[1, 80]


def test_the_seed_moves_the_validation_part_but_never_the_test_part(tmp_path):
    root = str(write_voc(tmp_path, images=20))
    members = {}
    for seed in (0, 1):
        data = ready("voc_boxes", root, image_size=32, seed=seed)
        members[seed] = {part: set(getattr(data, f"{part}_set").indices.tolist()) for part in ("train", "val", "test")}
        assert set.union(*members[seed].values()) == set(range(20))
        assert sum(map(len, members[seed].values())) == 20
    assert members[0]["test"] == members[1]["test"]
    assert members[0]["val"] != members[1]["val"]


def test_caps_do_not_depend_on_the_seed():
    first, second = ready(seed=0, **FEW), ready(seed=1, **FEW)
    assert torch.equal(first.test_set.indices, second.test_set.indices)
    assert torch.equal(first.val_set.indices, second.val_set.indices)


def test_fingerprints_tell_parts_seeds_and_content_apart():
    data = ready(**FEW)
    prints = {data.fingerprint(part) for part in ("train", "val", "test")}
    assert len(prints) == 3
    assert ready(**FEW).fingerprint("train") == data.fingerprint("train")
    assert ready(seed=1, **FEW).fingerprint("train") != data.fingerprint("train")
    assert ready(task="segmentation", **FEW).fingerprint("train") != data.fingerprint("train")
    assert ready(**{**FEW, "image_size": 64}).transform_fingerprint() != data.transform_fingerprint()


def test_label_counts(tmp_path):
    root = write_masks(tmp_path, count=8, values=(0, 1, 9))
    data = ready("mask_folder", str(root), image_size=SIZE, void_ids=(9,))
    pixels = SIZE[0] * SIZE[1] // 3 * len(data.train_set)
    assert data.label_counts().tolist() == [pixels, pixels]
    boxes = ready(**FEW)
    assert boxes.label_counts().sum() == sum(len(example.labels) for example in boxes.train_set.examples)


def test_images_are_decoded_once_for_all_trials_of_a_process(tmp_path):
    root = str(write_voc(tmp_path, images=8))
    first = ready("voc_boxes", root, image_size=32)
    again = ready("voc_boxes", root, image_size=32)
    assert all(a is b for a, b in zip(first.train_set.examples, again.train_set.examples, strict=True))
    write_voc(tmp_path, images=9)
    assert ready("voc_boxes", root, image_size=32).train_set.examples[0] is not first.train_set.examples[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "scnes"}, "did you mean scenes"),
        ({"name": "voc_boxes", "task": "segmentation"}, "voc_boxes is annotated for detection, not for segmentation"),
        ({"image_size": 8}, "image_size must be 32 to 4096"),
        ({"image_size": (64, 5000)}, "image_size must be 32 to 4096"),
        ({"train_images": 0}, "train_images must be at least 1"),
        ({"val_fraction": 1.0}, "val_fraction must lie between 0 and 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"void_ids": (300,)}, "void_ids are pixel values"),
        ({"on_bad_annotation": "ignore"}, "unknown value of on_bad_annotation"),
        ({"train_images": 5000}, "train_images is 5000, but scenes has 2000"),
    ],
)
def test_impossible_values(options, reason):
    with pytest.raises(UserError, match=reason):
        DenseDataModule(**options).setup()


def test_too_few_images_to_split(tmp_path):
    with pytest.raises(UserError, match="too few images for a test split"):
        ready("voc_boxes", str(write_voc(tmp_path, images=2)), image_size=32)


@pytest.mark.parametrize("name", ["oxford_pet", "voc_segmentation"])
def test_missing_download_says_what_to_do(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name} is not complete in .* and downloading is off .*data_dir.*scenes"):
        ready(name, str(tmp_path), download=False)


def test_every_card_says_where_a_set_comes_from():
    for name, card in DENSE_SETS.items():
        assert card.name == name
        assert card.tasks
        assert card.licence
        assert card.source
        assert card.imagenet_overlap


def test_a_large_set_is_composed_only_as_far_as_it_is_asked_for():
    data = ready(**FEW)
    assert len(list(islice(data.test_dataloader(), 100))) == 1
    assert len(data.test_set) == 4


def test_oxford_pet_has_void_at_the_border_of_the_animals(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    names = [f"cat_{k}" for k in range(6)]
    write_masks(base, count=6, values=(1, 2, 3))
    (base / "annotations" / "trimaps").mkdir(parents=True)
    for k, name in enumerate(names):
        (base / "images" / f"{k:02d}.jpg").rename(base / "images" / f"{name}.jpg")
        (base / "masks" / f"{k:02d}.png").rename(base / "annotations" / "trimaps" / f"{name}.png")
    for split, members in (("trainval", names[:4]), ("test", names[4:])):
        (base / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in members))
    data = ready("oxford_pet", str(tmp_path), image_size=SIZE, download=False)
    assert data.class_names == ["background", "pet"]
    assert len(data.test_set) == 2
    assert set(np.unique(data.test_set.examples[0].mask)) == {0, 1, 255}
    assert data.label_counts("test").tolist() == [SIZE[0] * SIZE[1] * 2 // 3] * 2


def test_voc_segmentation_is_tested_on_its_validation_part(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    write_masks(base, count=6, values=(0, 7, 20, 255))
    (base / "images").rename(base / "JPEGImages")
    (base / "masks").rename(base / "SegmentationClass")
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, members in (("train", range(4)), ("val", range(4, 6))):
        lines = "".join(f"{k:02d}\n" for k in members)
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(lines)
    data = ready("voc_segmentation", str(tmp_path), image_size=SIZE)
    assert data.num_classes == 21
    assert data.class_names[7] == "car"
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [3, 1, 2]
    assert set(np.unique(data.test_set.examples[0].mask)) == {0, 7, 20, 255}


def test_it_prints_what_it_holds():
    data = DenseDataModule(**{**FEW, "image_size": (48, 64)})
    assert str(data) == "DenseDataModule('scenes'): 48 x 64 px, batches of 4; not set up"
    data.setup()
    assert str(data).splitlines()[1].startswith("12 train, 4 val, 4 test images of 10 classes: ")
