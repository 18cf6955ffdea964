"""Cached views of randomly augmented images."""

from __future__ import annotations

import pytest
import torch
from cached_fits import digits, frozen_task, task, train
from lightning.pytorch.callbacks import Callback

from tl_lightning.callbacks import BatchAugmentation
from tl_lightning.errors import UserError
from tl_lightning.features import (
    ActivationCache,
    CachedDataModule,
    compute_activations,
)

AUGMENTATION = {"crop_padding": 4, "color": 0.2, "erasing": 0.5, "seed": 5}


def test_views_are_the_images_of_the_epochs_of_live_training():
    live: list[dict] = []

    class Keep(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            live.append({k: v.clone() for k, v in batch.items()})

    module, callback = task("resnet18"), BatchAugmentation(**AUGMENTATION)
    train(module, digits(), "head", callback, Keep(), epochs=2)
    boundary = module.stages.boundary_before("head")
    module.backbone.requires_grad_(False)
    data = CachedDataModule(digits(), module, boundary, views=2, augmentation=callback.augmentation)
    loader, served = data.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        served += list(loader)
    prefix = module.stages.split(boundary)[0]
    for one, other in zip(live, served, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["label"], other["label"])
        expected = compute_activations(prefix, one["image"], normalise=module.normalise)
        assert torch.allclose(other["activation"], expected, atol=1e-5)


def test_views_differ_repeat_and_leave_evaluation_alone():
    module = frozen_task("resnet18")
    cache = ActivationCache()
    augmentation = BatchAugmentation(**AUGMENTATION).augmentation
    boundary = module.stages.boundary_before("head")

    def loaders(augmentation=augmentation):
        data = CachedDataModule(digits(), module, boundary, cache, views=2, augmentation=augmentation)
        return data.train_dataloader(), data.val_dataloader(), data

    train_loader, val_loader, data = loaders()
    served = []
    for epoch in range(3):
        train_loader.sampler.set_epoch(epoch)
        rows = {int(i): a for batch in train_loader for i, a in zip(batch["index"], batch["activation"], strict=True)}
        served.append(torch.stack([rows[i] for i in sorted(rows)]))
    assert not torch.allclose(served[0], served[1])
    assert torch.equal(served[0], served[2])
    plain = CachedDataModule(digits(), module, boundary, cache)
    assert torch.equal(next(iter(val_loader))["activation"], next(iter(plain.val_dataloader()))["activation"])
    assert data.extraction_seconds > 0
    assert loaders()[2].extraction_seconds == 0
    assert loaders(BatchAugmentation(**{**AUGMENTATION, "seed": 6}).augmentation)[2].extraction_seconds > 0


def test_random_augmentation_needs_views():
    module = task("resnet18")
    boundary = module.stages.boundary_before("head")
    augmentation = BatchAugmentation().augmentation
    with pytest.raises(UserError, match="views=K"):
        CachedDataModule(digits(), module, boundary, augmentation=augmentation)
    with pytest.raises(UserError, match="random augmentation"):
        CachedDataModule(digits(), module, boundary, views=2)
    with pytest.raises(UserError, match="at least 0"):
        CachedDataModule(digits(), module, boundary, views=-1)


def test_views_that_do_not_fit_are_refused():
    module = task("resnet18")
    data = CachedDataModule(
        digits(), module, module.stages.boundary_before("head"), ActivationCache(max_bytes=0), views=2,
        augmentation=BatchAugmentation().augmentation,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="nothing is kept"), pytest.raises(UserError, match="cannot hold 2 views"):
        data.train_dataloader()
