"""Train one arm at one seed: every learning rate of the grid, selection on validation, one look at the test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from tl_lightning.backbones import check_image_size, create_backbone, input_spec
from tl_lightning.callbacks import (
    DiscriminativeLR,
    EfficiencyMonitor,
    FreezeAudit,
    MetricHistory,
    Plan,
    ProgressiveUnfreezing,
    StepSeed,
)
from tl_lightning.data import TransferDataModule
from tl_lightning.features import ActivationCache, CachedDataModule
from tl_lightning.study.design import Trial
from tl_lightning.study.devices import Devices, resolve_devices
from tl_lightning.study.settings import Settings
from tl_lightning.study.tensorboard import write_hparams
from tl_lightning.tasks import TransferModule

Depth = int | str
Freezing = Depth | Mapping[int, Depth]


@dataclass(frozen=True)
class Candidate:
    """One fit: an arm at one seed and one learning rate."""

    lr: float
    module: TransferModule
    datamodule: pl.LightningDataModule
    trainer: pl.Trainer
    validation: dict[str, float]
    efficiency: dict[str, Any]
    curve: list[dict[str, float]]
    folder: Path


def data_module(settings: Settings, seed: int, **options: Any) -> TransferDataModule:
    """Return the data module of a study at one seed, set up; ``options`` override its arguments.

    All arms of a seed get the same one: its images are decoded once.
    """
    arguments: dict[str, Any] = {
        "name": settings.data,
        "data_dir": settings.data_dir,
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "eval_batch_size": 256 if torch.cuda.is_available() else 32,  # on a CPU small batches stay in its cache
        "samples_per_class": settings.samples_per_class,
        "val_samples": settings.max_val_samples,
        "test_samples": settings.max_test_samples,
        "workers": settings.workers,
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


def train_and_test(
    trial: Trial,
    settings: Settings,
    *,
    freezing: Freezing = 0,
    lr_decay: float | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    epochs: int | None = None,
    bn: str = "eval",
    augmentation: Callable[[], Callback] | None = None,
    module_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    learning_rates: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Fit the arm at every learning rate, select by validation accuracy, test the selected model once.

    Args:
        trial: Arm, seed and folder.
        settings: What all arms share.
        freezing: Number of frozen stages, first trainable stage, or a schedule of them by epoch.
        lr_decay: Factor of the learning rate from one stage to the one below; equal rates by default.
        backbone: Another backbone than that of the settings.
        weights: Other weights than those of the settings.
        epochs: Another number of epochs than that of the settings.
        bn: What BatchNorm does in frozen stages, see ``ProgressiveUnfreezing``.
        augmentation: Makes the augmentation callback; no augmentation by default.
        module_options: Further arguments of ``TransferModule``.
        data_options: Further arguments of ``TransferDataModule``.
        learning_rates: Another grid than that of the settings; must be as long, so that no arm is tuned more.

    Returns:
        The values of the trial's record.
    """
    devices = resolve_devices(settings.gpus, settings.precision)
    datamodule = data_module(settings, trial.seed, **(data_options or {}))
    backbone, weights = backbone or settings.backbone, weights or settings.weights
    epochs = epochs or settings.epochs
    rates = sorted(learning_rates or settings.rate_list())

    def fit(lr: float) -> Candidate:
        module = build_module(trial.seed, backbone, weights, datamodule.num_classes, lr, settings, module_options or {})
        callbacks = build_callbacks(trial.seed, freezing, lr_decay, bn, augmentation)
        data = _cached(datamodule, module, freezing, bn, augmentation, settings)
        return _fit(module, data, callbacks, devices, epochs, trial.folder / f"lr={lr:g}")

    candidates = [fit(lr) for lr in rates]
    best = select(candidates)
    test = best.trainer.test(best.module, best.datamodule, verbose=False)[0]
    record = {
        "backbone": backbone,
        "weights": weights,
        "epochs": epochs,
        "train_images": len(datamodule.train_set),
        "learning_rate": best.lr,
        "learning_rate_at_edge": len(rates) > 2 and best.lr in (rates[0], rates[-1]),
        "learning_rates_tried": len(rates),
        **{name.replace("/", "_"): value for name, value in {**best.validation, **test}.items()},
        **_costs(best, candidates),
        "device": devices.name,
        "precision": devices.precision,
        "bn": bn,
        "data_fingerprint": datamodule.fingerprint("train"),
        "test_fingerprint": datamodule.fingerprint("test"),
        "transform_fingerprint": datamodule.transform_fingerprint(),
        "candidates": [{"learning_rate": c.lr, **c.validation} for c in candidates],
        "curve": best.curve,
    }
    write_hparams(best.folder, {**trial.arm.factors, "seed": trial.seed, "lr": best.lr}, test)
    return record


def _costs(best: Candidate, candidates: Sequence[Candidate]) -> dict[str, float]:
    """Return what the selected fit cost on its own, with the activations that an earlier fit of the trial computed."""
    extraction = sum(c.efficiency["extraction_seconds"] for c in candidates)
    seconds = best.efficiency["train_seconds"] + extraction
    return {**best.efficiency, "train_seconds": seconds, "extraction_seconds": extraction}


def select(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate of the highest validation accuracy, the lower validation loss where they tie."""
    return max(candidates, key=lambda c: (c.validation["val/accuracy"], -c.validation["val/loss"]))


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


def build_callbacks(
    seed: int,
    freezing: Freezing,
    lr_decay: float | None,
    bn: str,
    augmentation: Callable[[], Callback] | None,
) -> list[Callback]:
    """Return the callbacks of a fit, those that every study has among them."""
    callbacks: list[Callback] = [StepSeed(seed), ProgressiveUnfreezing(freezing, bn=bn)]  # type: ignore[arg-type]
    if lr_decay is not None:
        callbacks.append(DiscriminativeLR(decay=lr_decay))
    if augmentation is not None:
        callbacks.append(augmentation())
    return [*callbacks, FreezeAudit(), EfficiencyMonitor(), MetricHistory()]


def _cached(
    datamodule: TransferDataModule,
    module: TransferModule,
    freezing: Freezing,
    bn: str,
    augmentation: Callable[[], Callback] | None,
    settings: Settings,
) -> pl.LightningDataModule:
    """Return a data module that serves the activations at the freeze boundary where they never change."""
    fixed = not isinstance(freezing, Mapping) and bn == "eval" and augmentation is None
    depth = module.stages.depth(freezing) if fixed else 0  # type: ignore[arg-type]
    if depth == 0 or settings.cache_size == 0:
        return datamodule
    boundary = module.stages.boundary_before(depth)
    cache = activation_cache(settings.cache_dir, settings.cache_size)
    return CachedDataModule(datamodule, module, boundary, cache)


def _fit(
    module: TransferModule,
    datamodule: pl.LightningDataModule,
    callbacks: list[Callback],
    devices: Devices,
    epochs: int,
    folder: Path,
) -> Candidate:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator=devices.accelerator,
        devices=devices.count,
        precision=devices.precision,  # type: ignore[arg-type]
        callbacks=callbacks,
        logger=TensorBoardLogger(folder.parent, name="", version=folder.name, default_hp_metric=False),
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, datamodule)
    validation = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "train/"))}
    efficiency = next(c for c in callbacks if isinstance(c, EfficiencyMonitor)).summary()
    curve = next(c for c in callbacks if isinstance(c, MetricHistory)).rows
    return Candidate(module.hparams["lr"], module, datamodule, trainer, validation, efficiency, curve, folder)


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
