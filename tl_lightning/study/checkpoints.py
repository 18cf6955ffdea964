"""Checkpoints from which the fit that a signal or a crash ended goes on, bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from tl_lightning.study.environment import environment
from tl_lightning.study.signals import check_stopped, take_back

NAME = "resume-*.ckpt"  # a pattern: the star stands for the state of the software


class ResumeCheckpoint(Checkpoint):
    """Writes a checkpoint at ends of epochs, where a resumed fit repeats the one that was never stopped.

    In mid-epoch it would not: the sums behind the epoch's training loss and accuracy are in no checkpoint. One made
    by other versions or another commit is never used.

    Args:
        folder: The fit's folder.
        every_seconds: Time between two; shorter fits write none.
    """

    def __init__(self, folder: Path, every_seconds: float) -> None:
        self.folder = folder
        self.every_seconds = every_seconds
        software = hashlib.sha256(json.dumps(environment(), sort_keys=True).encode()).hexdigest()[:12]
        self._path = folder / NAME.replace("*", f"{software}-epoch")
        self._done = folder / NAME.replace("*", f"{software}-done")
        self._start = self._last = time.monotonic()

    @property
    def epoch(self) -> Path | None:
        """The checkpoint to go on from, None where there is none."""
        return self._path if self._path.exists() else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        take_back()
        self._last = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop here when a signal has come."""
        check_stopped()

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop here when a signal has come."""
        check_stopped()

    on_test_batch_start = on_validation_batch_start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write one when it is time, on all processes together."""
        due = time.monotonic() - self._last >= self.every_seconds
        if trainer.strategy.broadcast(due):
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with contextlib.suppress(OSError, RuntimeError):  # a disk that is full ends the study at the next record
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                os.replace(temporary, self._path)
        self._last = time.monotonic()

    def keep(self, module: pl.LightningModule, values: dict[str, Any]) -> None:
        """Keep what a finished fit found, for the trial's next call, where it took long enough.

        Args:
            module: The trained module.
            values: Numbers, texts, lists and dicts.
        """
        if time.monotonic() - self._start < self.every_seconds:
            return
        temporary = self._done.with_name(f".{self._done.name}.tmp")
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError, RuntimeError):
            torch.save({"weights": module.state_dict(), "values": values}, temporary)
            os.replace(temporary, self._done)
            self._path.unlink(missing_ok=True)

    def finished(self, module: pl.LightningModule) -> dict[str, Any] | None:
        """Load what `keep` kept: the weights into the module, the values as the result; None where there is nothing."""
        if not self._done.exists():
            return None
        content = torch.load(self._done, map_location="cpu", weights_only=True)
        module.load_state_dict(content["weights"])
        return dict(content["values"])
