"""A second model of an arm that only chance sets apart: another head, other weights from scratch, other batches."""

from __future__ import annotations

import copy
from dataclasses import replace

from tl_lightning.callbacks import ProgressiveUnfreezing
from tl_lightning.data import TransferDataModule
from tl_lightning.study.design import Trial
from tl_lightning.study.fitting import Fits, fit_grid
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import build_module, data_module
from tl_lightning.tasks import TransferModule

OTHER = 10_000  # added to a trial's seed, so that no twin is the trial of another seed


def fit_twin(trial: Trial, settings: Settings, lr: float, *, weights: str, epochs: int | None = None) -> Fits:
    """Fit the whole network once more on the trial's own images, with other random numbers.

    The images and the learning rate are those of the trial; the initial weights that are drawn (the head, or all of
    them) and the order of the batches are others. A twin is never tested.

    Args:
        trial: Arm, seed and folder of the first model.
        settings: What all arms share.
        lr: The learning rate that validation selected for the first model.
        weights: Weights to begin with, ``none`` for random ones.
        epochs: Another number of epochs than that of the settings.
    """
    images, seed = data_module(settings, trial.seed), trial.seed + OTHER
    own = replace(settings, learning_rates=[lr])

    def build(rate: float) -> TransferModule:
        return build_module(seed, settings.backbone, weights, images.num_classes, rate, settings, {})

    return fit_grid(
        replace(trial, seed=seed),
        own,
        images,
        build,
        callbacks=lambda: [ProgressiveUnfreezing(0)],
        data=lambda _: in_other_order(images, seed),
        epochs=epochs,
        phase="twin-",
    )


def in_other_order(images: TransferDataModule, seed: int) -> TransferDataModule:
    """Return a data module that serves the same parts, with the training batches in the order of another seed."""
    other = copy.copy(images)
    other.seed = seed
    return other
