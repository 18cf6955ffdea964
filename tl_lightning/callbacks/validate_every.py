"""Validate in some epochs only, where epochs are many and short."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tl_lightning.errors import UserError


class ValidateEvery(Callback):
    """Validates after every n-th epoch: the trainer's ``check_val_every_n_epoch``, for whoever does not make it.

    Args:
        epochs: n; the trainer's number of epochs must be a multiple of it, so that the last epoch is validated.

    Raises:
        UserError: At once where n is below 1, at the start of the fit where the last epoch would not be validated.
    """

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise UserError(f"validation every n-th epoch needs n of at least 1, not {epochs}")
        self.epochs = epochs
        self._before: int | None = 1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the trainer."""
        if stage != "fit":
            return
        self._before = trainer.check_val_every_n_epoch
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # one epoch, which is validated
        last = trainer.max_epochs
        if last is None or last < 0 or last % self.epochs:
            raise UserError(
                f"validation every {self.epochs} epochs leaves the last of {last} epochs out: choose a multiple"
            )
        trainer.check_val_every_n_epoch = self.epochs

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the trainer as it was."""
        if stage == "fit":
            trainer.check_val_every_n_epoch = self._before
