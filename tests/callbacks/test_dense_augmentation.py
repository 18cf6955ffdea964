"""DenseAugmentation in a real fit: images, boxes and masks that the training step gets belong together."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from quiet_trainer import quiet_trainer
from torch import nn

from tl_lightning.callbacks.augmentation import BatchAugmentation
from tl_lightning.callbacks.dense_augmentation import DenseAugmentation
from tl_lightning.data.dense import DenseDataModule
from tl_lightning.errors import UserError


class Collector(pl.LightningModule):
    """Keeps the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches: list[dict] = []

    def training_step(self, batch, batch_idx):
        self.batches.append({k: [t.clone() for t in v] if isinstance(v, list) else v.clone() for k, v in batch.items()})
        return self.layer(batch["image"].mean().view(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def batches(callback, task="detection", epochs=1, data=None):
    module = Collector()
    trainer = quiet_trainer(max_epochs=epochs, limit_val_batches=0, callbacks=[callback] if callback else [])
    data = data or DenseDataModule(task=task, train_images=16, val_images=1, test_images=1, image_size=64, batch_size=8)
    trainer.fit(module, data)
    return module.batches


def test_boxes_and_labels_follow():
    plain, changed = batches(None), batches(DenseAugmentation(flip=True, resized_crop=(0.2, 0.5), color=0.3))
    same = moved = 0
    for before, after in zip(plain, changed, strict=True):
        assert torch.equal(before["index"], after["index"])
        assert not torch.equal(before["image"], after["image"])
        for boxes, labels, crowd in zip(after["boxes"], after["labels"], after["crowd"], strict=True):
            assert len(boxes) == len(labels) == len(crowd)
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes >= 0).all()
            assert (boxes <= 64).all()
        for one, other in zip(before["boxes"], after["boxes"], strict=True):
            same += one.shape == other.shape and torch.equal(one, other)
            moved += 1
    assert same < moved / 2
    counts = [sum(len(labels) for batch in run for labels in batch["labels"]) for run in (plain, changed)]
    assert 0 < counts[1] < counts[0]  # some lie outside of the crops


def test_masks_show_what_the_images_show():
    """Digits are brighter than the background, before and after."""
    for batch in batches(DenseAugmentation(flip=True, resized_crop=(0.5, 1.0)), task="segmentation"):
        brightest = batch["image"].amax(1)
        ink = brightest[(batch["mask"] > 0) & (batch["mask"] < 255)]
        background = brightest[batch["mask"] == 0]
        assert ink.median() > background.quantile(0.95)


def test_a_flip_alone_mirrors_boxes_with_their_images():
    for before, after in zip(batches(None), batches(DenseAugmentation(flip=True)), strict=True):
        for k in range(len(before["image"])):
            mirrored = torch.equal(after["image"][k], before["image"][k].flip(-1))
            assert mirrored or torch.equal(after["image"][k], before["image"][k])
            expected = before["boxes"][k]
            if mirrored:
                expected = torch.stack((64 - expected[:, 2], expected[:, 1], 64 - expected[:, 0], expected[:, 3]), 1)
            assert torch.allclose(after["boxes"][k], expected, atol=1e-4)


def test_the_same_seed_gives_the_same_batches_and_another_epoch_others():
    first, again = (batches(DenseAugmentation(crop_padding=5), epochs=2) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["image"], other["image"])
    by_index = [
        {int(i): image for batch in half for i, image in zip(batch["index"], batch["image"], strict=True)}
        for half in (first[:2], first[2:])
    ]
    assert any(not torch.equal(by_index[0][i], by_index[1][i]) for i in by_index[0])


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_the_plain_augmentation_is_refused_for_dense_tasks(task):
    from tl_lightning.tasks.detection import DetectionModule
    from tl_lightning.tasks.segmentation import SegmentationModule

    data = DenseDataModule(task=task, train_images=4, val_images=2, test_images=1, image_size=64)
    kind = DetectionModule if task == "detection" else SegmentationModule
    trainer = quiet_trainer(callbacks=[BatchAugmentation()])
    with pytest.raises(UserError, match="BatchAugmentation moves images but not their boxes and masks"):
        trainer.fit(kind("mobilenet_v3_small", 10 if task == "detection" else 11), data)


def test_impossible_values_and_batches():
    with pytest.raises(UserError, match="min_visible must lie in"):
        DenseAugmentation(min_visible=2)
    with pytest.raises(UserError, match="mirrored objects would have no boxes"):
        batches(DenseAugmentation(padding="reflection"))
    with pytest.raises(UserError, match="take BatchAugmentation"):
        DenseAugmentation().on_train_batch_start(None, None, {"image": torch.rand(2, 3, 8, 8), "label": None}, 0)
