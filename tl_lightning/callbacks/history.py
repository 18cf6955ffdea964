"""Keep the metrics of every epoch in memory, for learning curves."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class MetricHistory(Callback):
    """Collects what the module logged, an epoch a row.

    Attributes:
        rows: A dict for each epoch with ``epoch`` (from 0), ``seconds`` since the fit began (validation included),
            and every metric of the epoch: those of the validation (``val/...``) only where one was run.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._start = 0.0
        self._earlier = 0.0
        self._validated = False
        self._fitting = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew with a fit; what a test loads from a checkpoint must leave the rows alone."""
        self._fitting = stage == "fit"
        if self._fitting:
            self.rows, self._earlier = [], 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, so that a resumed fit goes on with them."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the last row."""
        if self._fitting:
            self.rows = [dict(row) for row in state_dict["rows"]]
            self._earlier = self.rows[-1]["seconds"] if self.rows else 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; in a resumed fit where it stood."""
        self._start = time.perf_counter() - self._earlier
        self._earlier = 0.0
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the metrics of the validation are of this epoch."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the epoch's metrics; validation has run by now."""
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated or not name.startswith(("val/", "train/clean_"))
        }
        self._validated = False
        seconds = time.perf_counter() - self._start
        self.rows.append({"epoch": trainer.current_epoch, "seconds": round(seconds, 4), **metrics})
