"""What the features at a depth are worth: linear heads at all learning rates, trained together on one forward pass."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from tl_lightning.data import TransferDataModule
from tl_lightning.features import PartActivations, global_average, train_heads
from tl_lightning.study.design import Trial
from tl_lightning.study.protocol import opened_test, seal
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import activation_cache, build_module, data_module
from tl_lightning.tasks import TransferModule

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # on standardised features, whatever the network
EPOCHS = 50


def head_at_depth(trial: Trial, settings: Settings, depth: int) -> dict[str, Any]:
    """Train a linear head on the averaged features behind the first stages of the settings' network.

    One forward pass keeps the features of all depths, for the other trials too; the heads of all learning rates are
    trained by one matrix product a step. Validation selects the rate, the test set is opened once for the head.

    Args:
        trial: Arm, seed and folder.
        settings: What all arms share.
        depth: Number of stages before the head, from 1 to all but the network's own head.

    Returns:
        The values of the trial's record.
    """
    images = data_module(settings, trial.seed)
    seal(images)
    module = build_module(
        trial.seed, settings.backbone, settings.weights, images.num_classes, RATES[0], settings, {}
    ).eval()
    source = _features(images, module, settings)
    name = module.stages.boundary_before(depth).name
    train, val = (source.part(part)[name].gather(_all(images, part)) for part in ("train", "val"))
    start = time.perf_counter()  # behind the extraction, which serves all depths and is told apart
    mean, scale = train.mean(0), train.std(0).clamp_min(1e-6)
    weights, biases = train_heads(
        (train - mean) / scale,
        images.train_set.labels,
        images.num_classes,
        seeds=[trial.seed],
        rates=RATES,
        epochs=EPOCHS,
        batch_size=settings.batch_size,
    )
    heads = [_head(weight, bias, mean, scale) for weight, bias in zip(weights[0], biases[0], strict=True)]
    accuracies = [_accuracy(head, val, images.val_set.labels) for head in heads]
    best = max(range(len(RATES)), key=lambda i: (accuracies[i], -i))
    seconds = time.perf_counter() - start
    with opened_test(images, heads[best]):  # type: ignore[arg-type]
        images.test_dataloader()  # refused where this head has been tested before
        test = source.part("test")[name].gather(_all(images, "test"))
    return {
        "backbone": settings.backbone,
        "weights": settings.weights,
        "epochs": EPOCHS,
        "train_images": len(train),
        "learning_rate": RATES[best],
        "learning_rate_at_edge": best in (0, len(RATES) - 1),
        "learning_rates_tried": len(RATES),
        "val_accuracy": accuracies[best],
        "test_accuracy": _accuracy(heads[best], test, images.test_set.labels),
        "features": train.shape[1],
        "trainable_parameters": sum(parameter.numel() for parameter in heads[best].parameters()),
        "train_seconds": seconds,
        "extraction_seconds": source.seconds,
        "skipped_images": images.skipped,
        "data_fingerprint": images.fingerprint("train"),
        "test_fingerprint": images.fingerprint("test"),
        "transform_fingerprint": images.transform_fingerprint(),
    }


def _features(images: TransferDataModule, module: TransferModule, settings: Settings) -> PartActivations:
    names = [module.stages.boundary_before(depth).name for depth in range(1, len(module.stages))]
    cache = activation_cache(settings.cache_dir, settings.cache_size)
    return PartActivations(images, module, names, cache, reduce=global_average)


def _all(images: TransferDataModule, part: str) -> Tensor:
    return torch.arange(len(getattr(images, f"{part}_set")))


def _head(weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> nn.Linear:
    """Return the head for features as they are, in place of standardised ones."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.weight.data = weight / scale
    head.bias.data = bias - head.weight.data @ mean
    return head


@torch.no_grad()
def _accuracy(head: nn.Linear, features: Tensor, labels: Tensor) -> float:
    return float((head(features).argmax(1) == labels).double().mean())
