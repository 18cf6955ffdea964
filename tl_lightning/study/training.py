"""Train a classifier of one arm at one seed, on cached activations where what is frozen never changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tl_lightning.backbones import check_image_size, create_backbone, input_spec
from tl_lightning.callbacks import DiscriminativeLR, FoldedPrefix, Plan, ProgressiveUnfreezing
from tl_lightning.callbacks.frozen import BnPolicy
from tl_lightning.data import TransferDataModule
from tl_lightning.features import ActivationCache, CachedDataModule
from tl_lightning.study.design import Trial
from tl_lightning.study.devices import resolve_devices
from tl_lightning.study.fitting import Fits, evaluate_selected, fit_grid
from tl_lightning.study.settings import Settings
from tl_lightning.tasks import TaskModule, TransferModule

Depth = int | str
Freezing = Depth | Mapping[int, Depth]


def data_module(settings: Settings, seed: int, **options: Any) -> TransferDataModule:
    """Return the data module of a study at one seed, set up; ``options`` override its arguments.

    All arms of a seed get the same one: its images are decoded once.
    """
    arguments: dict[str, Any] = {
        "name": settings.data,
        "data_dir": settings.data_dir,
        "image_size": settings.image_size,
        "batch_size": settings.micro_batch_size(),
        "eval_batch_size": 256 if torch.cuda.is_available() else 32,  # on a CPU small batches stay in its cache
        "samples_per_class": settings.samples_per_class,
        "val_samples": settings.max_val_samples,
        "test_samples": settings.max_test_samples,
        "workers": settings.workers,
        "on_bad_image": settings.on_bad_image,
        "seed": seed,
    }
    return _set_up(tuple(sorted({**arguments, **options}.items())))


@lru_cache(maxsize=4)
def _set_up(arguments: tuple[tuple[str, Any], ...]) -> TransferDataModule:
    datamodule = TransferDataModule(**dict(arguments))
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


@cache
def activation_cache(directory: str | None, gigabytes: float) -> ActivationCache:
    """Return the cache that all trials of this process share."""
    return ActivationCache(Path(directory) if directory else None, max_bytes=int(gigabytes * 2**30))


def fit_classifier(
    trial: Trial,
    settings: Settings,
    *,
    freezing: Freezing = 0,
    lr_decay: float | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    epochs: int | None = None,
    bn: BnPolicy = "eval",
    freeze_from: Depth | None = None,
    augmentation: Callable[[], Callback] | None = None,
    callbacks: Callable[[], Sequence[Callback]] | None = None,
    module_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    learning_rates: Sequence[float] | None = None,
    precision: str | None = None,
    start: Mapping[str, Tensor] | None = None,
    phase: str = "",
) -> Fits:
    """Fit the arm at every learning rate, on cached activations where what is frozen never changes.

    Args:
        trial: Arm, seed and folder.
        settings: What all arms share.
        freezing: Number of frozen stages, first trainable stage, or a schedule of them by epoch.
        lr_decay: Factor of the learning rate from one stage to the one below; equal rates by default.
        backbone: Another backbone than that of the settings.
        weights: Other weights than those of the settings.
        epochs: Another number of epochs than that of the settings.
        bn: What BatchNorm does in frozen stages, see ``ProgressiveUnfreezing``.
        freeze_from: Stages from this one on stay frozen too, see ``ProgressiveUnfreezing``.
        augmentation: Makes the augmentation callback; no augmentation by default.
        callbacks: Makes further callbacks; they must not change what the frozen stages see.
        module_options: Further arguments of ``TransferModule``.
        data_options: Further arguments of ``TransferDataModule``.
        learning_rates: Another grid than that of the settings; must be as long, so that no arm is tuned more.
        precision: Another precision than that of the settings.
        start: State dict of a module of the same kind to begin with, in place of the weights and a new head.
        phase: Name before that of the fits' folders, for arms that fit in several phases.
    """
    images = data_module(settings, trial.seed, **(data_options or {}))
    backbone, weights = backbone or settings.backbone, weights or settings.weights

    def build(lr: float) -> TransferModule:
        module = build_module(trial.seed, backbone, weights, images.num_classes, lr, settings, module_options or {})
        if start is not None:
            module.load_state_dict(start)
        return module

    def own_callbacks() -> list[Callback]:
        made: list[Callback] = [ProgressiveUnfreezing(freezing, bn=bn, freeze_from=freeze_from)]
        made += [DiscriminativeLR(decay=lr_decay)] if lr_decay is not None else []
        made += [augmentation()] if augmentation is not None else []
        made += [] if _fixed(freezing, bn, augmentation) and settings.cache_size else _folded(freezing, bn)
        return [*made, *(callbacks() if callbacks is not None else ())]

    return fit_grid(
        trial,
        settings,
        images,
        build,
        callbacks=own_callbacks,
        data=lambda module: _cached(images, module, freezing, bn, augmentation, settings),
        epochs=epochs,
        learning_rates=learning_rates,
        precision=precision,
        phase=phase,
    )


def train_and_test(
    trial: Trial,
    settings: Settings,
    *,
    tests: Mapping[str, Mapping[str, Any]] | None = None,
    inspect: Callable[[TaskModule, Any], Mapping[str, Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Fit the arm at every learning rate, select by validation accuracy, test the selected model once.

    Args:
        trial: Arm, seed and folder.
        settings: What all arms share.
        tests: Further test sets, by the prefix of their columns: each the options of ``TransferDataModule`` by which
            it differs, such as ``{"fog": {"corruption": "fog", "severity": 3}}`` for the column ``fog_accuracy``.
        inspect: Called with the selected module and the data module before the test; what it returns joins the record.
        options: As for ``fit_classifier``.

    Returns:
        The values of the trial's record.
    """
    fits = fit_classifier(trial, settings, **options)
    shared = options.get("data_options") or {}
    further = {prefix: data_module(settings, trial.seed, **{**shared, **own}) for prefix, own in (tests or {}).items()}
    return {
        "backbone": options.get("backbone") or settings.backbone,
        "weights": options.get("weights") or settings.weights,
        "bn": options.get("bn", "eval"),
        **evaluate_selected(trial, fits, tests=further, inspect=inspect),
    }


def build_module(
    seed: int,
    backbone: str,
    weights: str,
    num_classes: int,
    lr: float,
    settings: Settings,
    options: Mapping[str, Any],
) -> TransferModule:
    """Return the module; the seed alone decides the head's (and a scratch backbone's) initial weights."""
    torch.manual_seed(seed)
    dropout = options.get("dropout")
    model = create_backbone(backbone, weights, num_classes, dropout=dropout)
    spec = input_spec(backbone, weights)
    arguments: dict[str, Any] = {
        "lr": lr,
        "optimizer": settings.optimizer,
        "weight_decay": settings.weight_decay,
        "mean": spec.mean,
        "std": spec.std,
    }
    return TransferModule(model, num_classes, **{**arguments, **options})


def _cached(
    datamodule: TransferDataModule,
    module: TaskModule,
    freezing: Freezing,
    bn: str,
    augmentation: Callable[[], Callback] | None,
    settings: Settings,
) -> pl.LightningDataModule:
    """Return a data module that serves the activations at the freeze boundary where they never change."""
    fixed = _fixed(freezing, bn, augmentation)
    depth = module.stages.depth(freezing) if fixed else 0  # type: ignore[arg-type]
    if depth == 0 or settings.cache_size == 0 or settings.ranks() > 1:  # the cache serves one process
        return datamodule
    boundary = module.stages.boundary_before(depth)
    cache = activation_cache(settings.cache_dir, settings.cache_size)
    return CachedDataModule(datamodule, module, boundary, cache)


def _fixed(freezing: Freezing, bn: str, augmentation: object) -> bool:
    """Return whether what the frozen stages compute of an image is the same in every epoch."""
    return not isinstance(freezing, Mapping) and bn == "eval" and augmentation is None


def _folded(freezing: Freezing, bn: str) -> list[Callback]:
    """Return what runs frozen stages quickly where they see other images in every epoch, or thaw."""
    return [FoldedPrefix()] if bn == "eval" and freezing not in (0, "none") else []


def check_training(settings: Settings) -> None:
    """Raise ``UserError`` for a backbone, weights, data or image size that no trial could run with."""
    check_image_size(settings.backbone, settings.image_size)
    resolve_devices(settings.gpus, settings.precision)
    seed = settings.seed_list()[0]
    datamodule = data_module(settings, seed)
    build_module(seed, settings.backbone, settings.weights, datamodule.num_classes, 1e-3, settings, {})


def freezing_plan(settings: Settings, freezing: Freezing, lr_decay: float | None = None) -> Plan:
    """Return what a freezing schedule does to the settings' backbone in each epoch, without data or training."""
    backbone = create_backbone(settings.backbone, "none", num_classes=2)
    discriminative = None if lr_decay is None else DiscriminativeLR(decay=lr_decay)
    size = (3, settings.image_size, settings.image_size)
    return ProgressiveUnfreezing(freezing).plan(
        backbone, settings.epochs, input_size=size, lr=settings.rate_list()[-1], discriminative=discriminative
    )
