"""Fit one arm at one seed at every learning rate, select on validation, look once at the test set: for any task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from tl_lightning.callbacks import EfficiencyMonitor, FreezeAudit, MetricHistory, PreciseBatchNorm, StepSeed
from tl_lightning.errors import UserError
from tl_lightning.study.checkpoints import ResumeCheckpoint
from tl_lightning.study.design import Trial
from tl_lightning.study.devices import Devices, resolve_devices
from tl_lightning.study.plateau import reached_plateau
from tl_lightning.study.protocol import opened_test, seal
from tl_lightning.study.settings import Settings
from tl_lightning.study.tensorboard import write_hparams
from tl_lightning.tasks import TaskModule


@dataclass(frozen=True)
class Candidate:
    """One fit: an arm at one seed and one learning rate."""

    lr: float
    module: TaskModule
    datamodule: pl.LightningDataModule
    trainer: pl.Trainer
    validation: dict[str, float]
    efficiency: dict[str, Any]
    curve: list[dict[str, float]]
    folder: Path


@dataclass(frozen=True)
class Fits:
    """The fits of a trial, one for each learning rate, and the one that validation selected.

    Attributes:
        candidates: All of them, by rising learning rate.
        best: The one of the highest ``metric``, the lower validation loss where they tie.
        images: The data module behind the fits, without a cache before it.
        metric: What selects, higher is better.
        devices: What they ran on.
        epochs: Epochs of each.
    """

    candidates: Sequence[Candidate]
    best: Candidate
    images: Any
    metric: str
    devices: Devices
    epochs: int

    @property
    def train_seconds(self) -> float:
        """What the selected fit cost on its own, with the activations that an earlier fit of the trial computed."""
        return self.best.efficiency["train_seconds"] + self.extraction_seconds

    @property
    def extraction_seconds(self) -> float:
        """Seconds in which frozen activations were computed."""
        return sum(candidate.efficiency["extraction_seconds"] for candidate in self.candidates)


def fit_grid(
    trial: Trial,
    settings: Settings,
    images: Any,
    build: Callable[[float], TaskModule],
    *,
    callbacks: Callable[[], Sequence[Callback]],
    data: Callable[[TaskModule], pl.LightningDataModule] | None = None,
    metric: str = "val/accuracy",
    epochs: int | None = None,
    learning_rates: Sequence[float] | None = None,
    precision: str | None = None,
    phase: str = "",
) -> Fits:
    """Fit at every learning rate of the grid.

    Args:
        trial: Arm, seed and folder.
        settings: What all arms share.
        images: The data module, set up; its test set is sealed.
        build: Returns the module to fit, given the learning rate.
        callbacks: Returns an arm's own callbacks; seeding, audit, efficiency and history are added to them.
        data: Returns what a module is fitted on, where that is not ``images`` but activations computed from them.
        metric: What selects, higher is better.
        epochs: Another number of epochs than that of the settings.
        learning_rates: Another grid than that of the settings, as long, so that no arm is tuned more.
        precision: Another precision than that of the settings.
        phase: Name before that of the folder, for arms that fit in several phases.

    Raises:
        UserError: The grid is not as long as that of the settings.
    """
    rates = sorted(learning_rates or settings.rate_list())
    if len(rates) != len(settings.rate_list()):
        raise UserError(
            f"arm {trial.arm.name!r} tries {len(rates)} learning rates where the others try "
            f"{len(settings.rate_list())}: every arm is tuned alike"
        )
    seal(images)
    devices = resolve_devices(settings.gpus, precision or settings.precision)
    epochs = epochs or settings.epochs
    candidates = []
    for lr in rates:
        module = build(lr)
        every = [
            StepSeed(trial.seed),
            *callbacks(),
            FreezeAudit(),
            EfficiencyMonitor(),
            PreciseBatchNorm(),
            MetricHistory(),
        ]
        folder = trial.folder / f"{phase}lr={lr:g}"
        candidates.append(_fit(module, data(module) if data else images, every, devices, epochs, folder, settings))
    return Fits(candidates, select(candidates, metric), images, metric, devices, epochs)


def select(candidates: Sequence[Candidate], metric: str = "val/accuracy") -> Candidate:
    """Return the candidate of the highest metric, the lower validation loss where they tie."""
    return max(candidates, key=lambda c: (c.validation[metric], -c.validation.get("val/loss", 0.0)))


def evaluate_selected(
    trial: Trial,
    fits: Fits,
    *,
    tests: Mapping[str, Any] | None = None,
    inspect: Callable[[TaskModule, Any], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Test the selected model once and return the values of the trial's record.

    Args:
        trial: Arm, seed and folder.
        fits: The fits.
        tests: Further data modules to test on, by the prefix of their columns; with the prefix ``fog`` and accuracy
            as a metric the record holds ``fog_accuracy``.
        inspect: Called with the selected module and ``fits.images`` before the test; what it returns joins the record.
    """
    best, images = fits.best, fits.images
    counts = images.label_counts("val")
    inspected = dict(inspect(best.module, images)) if inspect else {}
    found = _test(best, best.datamodule, images)
    values = {**best.validation, **found}
    for prefix, datamodule in (tests or {}).items():
        seal(datamodule)
        further = _test(best, datamodule, datamodule)
        values |= {name.replace("test/", f"{prefix}/"): value for name, value in further.items()}
    rates = [candidate.lr for candidate in fits.candidates]
    if best.trainer.is_global_zero:
        write_hparams(best.folder, {**trial.arm.factors, "seed": trial.seed, "lr": best.lr}, found)
    return {
        "epochs": fits.epochs,
        "train_images": len(images.train_set),
        "one_answer_accuracy": float(counts.max() / counts.sum()) if fits.metric == "val/accuracy" else None,
        "learning_rate": best.lr,
        "learning_rate_at_edge": len(rates) > 2 and best.lr in (rates[0], rates[-1]),
        "learning_rates_tried": len(rates),
        **{name.replace("/", "_"): value for name, value in values.items()},
        "reached_plateau": reached_plateau([epoch[fits.metric] for epoch in best.curve if fits.metric in epoch]),
        **best.efficiency,
        "train_seconds": fits.train_seconds,
        "extraction_seconds": fits.extraction_seconds,
        "device": fits.devices.name,
        "precision": fits.devices.precision,
        "skipped_images": getattr(images, "skipped", 0),
        "data_fingerprint": images.fingerprint("train"),
        "test_fingerprint": images.fingerprint("test"),
        "transform_fingerprint": images.transform_fingerprint(),
        "candidates": [{"learning_rate": c.lr, **c.validation} for c in fits.candidates],
        "curve": best.curve,
        **inspected,
    }


def _test(candidate: Candidate, datamodule: pl.LightningDataModule, images: Any) -> dict[str, float]:
    with opened_test(images, candidate.module):
        return dict(candidate.trainer.test(candidate.module, datamodule, verbose=False)[0])


def _fit(
    module: TaskModule,
    datamodule: pl.LightningDataModule,
    callbacks: list[Callback],
    devices: Devices,
    epochs: int,
    folder: Path,
    settings: Settings,
) -> Candidate:
    resume = ResumeCheckpoint(folder, settings.checkpoint_seconds)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator=devices.accelerator,
        devices=settings.ranks_per_node(),
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        plugins=[LightningEnvironment()] if settings.ranks() > 1 else None,
        sync_batchnorm=settings.ranks() > 1 and devices.accelerator == "cuda",
        precision=devices.precision,  # type: ignore[arg-type]
        callbacks=[*callbacks, resume],
        accumulate_grad_batches=settings.accumulated_batches(),
        deterministic=settings.deterministic,
        logger=TensorBoardLogger(folder.parent, name="", version=folder.name, default_hp_metric=False),
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    found = resume.finished(module)
    if found is None:
        trainer.fit(module, datamodule, ckpt_path=resume.epoch, weights_only=True)
        found = {
            "validation": {
                k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "train/"))
            },
            "efficiency": next(c for c in callbacks if isinstance(c, EfficiencyMonitor)).summary(),
            "curve": next(c for c in callbacks if isinstance(c, MetricHistory)).rows,
        }
        if trainer.is_global_zero:
            resume.keep(module, found)
    lr = module.hparams["lr"]
    return Candidate(lr, module, datamodule, trainer, folder=folder, **found)
