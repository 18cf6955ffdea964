"""Small networks and images, trained on activations and on images."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from quiet_trainer import quiet_trainer
from torch import nn

from tl_lightning.backbones import create_backbone
from tl_lightning.callbacks import ProgressiveUnfreezing, StepSeed
from tl_lightning.data.datamodule import TransferDataModule
from tl_lightning.tasks import TransferModule


def backbone(name: str) -> nn.Module:
    torch.manual_seed(1)
    model = create_backbone(name, "none", 10, dropout=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


def digits(**options) -> TransferDataModule:
    defaults = {"image_size": 32, "batch_size": 12, "samples_per_class": 4, "val_samples": 20, "test_samples": 20}
    datamodule = TransferDataModule("digits", **{**defaults, **options})
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def task(name: str) -> TransferModule:
    torch.manual_seed(3)
    return TransferModule(backbone(name), 10, lr=2e-3, optimizer="sgd")


def frozen_task(name: str) -> TransferModule:
    module = task(name)
    module.backbone.requires_grad_(False)
    return module


def trainer(*callbacks: Callback, epochs: int = 1, **options) -> pl.Trainer:
    return quiet_trainer(max_epochs=epochs, callbacks=list(callbacks), **options)


def train(module: TransferModule, data, depth: str, *callbacks: Callback, epochs: int = 1) -> dict[str, float]:
    fit = trainer(StepSeed(0), ProgressiveUnfreezing(depth), *callbacks, epochs=epochs)
    fit.fit(module, data)
    return {k: float(v) for k, v in fit.callback_metrics.items()}


def assert_same_weights(one: nn.Module, other: nn.Module, start: nn.Module, tolerance: float = 5e-3) -> None:
    """Compare the change since the start, not the weights, which hardly move."""
    difference = change = 0.0
    pairs = zip(one.state_dict().values(), other.state_dict().values(), start.state_dict().values(), strict=True)
    for a, b, before in pairs:
        difference += float((a.double() - b.double()).square().sum())
        change += float((a.double() - before.double()).square().sum())
    assert change > 0
    assert difference <= tolerance**2 * change
