"""Random numbers of every training batch as a pure function of seed, epoch, batch and rank."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

_LOADER = 2**31  # stands for the batch index where an epoch's data order is drawn


class StepSeed(Callback):
    """Reseeds the global generators of torch, numpy and Python before every training batch.

    Dropout, stochastic depth and augmentation then draw the same numbers in a run that is resumed, without any
    generator state in the checkpoint. The order of a shuffling ``DataLoader`` is fixed too, where it is drawn: at the
    start of the fit and of every epoch. Put it before callbacks that draw random numbers.

    Args:
        seed: The seed; ranks of a distributed run draw different numbers.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._first_epoch = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start at the epoch the trainer is in."""
        self._first_epoch = trainer.current_epoch

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the epoch in which a resumed run goes on: its order is drawn before the loops are restored."""
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
        self._first_epoch = progress.get("current", {}).get("processed", 0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed the first epoch's order."""
        self._seed(trainer, self._first_epoch, _LOADER)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed the epoch's order; a loader has begun to draw that of the first epoch already."""
        if trainer.current_epoch != self._first_epoch:
            self._seed(trainer, trainer.current_epoch, _LOADER)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the batch."""
        self._seed(trainer, trainer.current_epoch, batch_idx)

    def _seed(self, trainer: pl.Trainer, epoch: int, batch_idx: int) -> None:
        words = np.random.SeedSequence([self.seed, epoch, batch_idx, trainer.global_rank]).generate_state(2)
        value = int(words[0]) << 32 | int(words[1])
        torch.manual_seed(value)
        random.seed(value)
        np.random.seed(int(words[0]))  # noqa: NPY002  (augmentations of others draw from the global generator)
