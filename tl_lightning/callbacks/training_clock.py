"""The seconds of training up to the end of every epoch, validation left out."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tl_lightning.callbacks.efficiency import EfficiencyMonitor
from tl_lightning.callbacks.stage_callback import callbacks_of
from tl_lightning.callbacks.stopwatch import Span, Stopwatch

NAME = "time/train_seconds"


class TrainingClock(Callback):
    """Logs ``time/train_seconds`` at the end of every epoch's training: the seconds of training since the fit began.

    Waiting for data counts; validation, checkpoints and what comes before the first epoch do not; on CUDA it is time
    of the device. A step whose operations an ``EfficiencyMonitor`` counts is slower for that alone (the first of a fit,
    and the first after stages thaw): it enters with the mean time of the other steps of its epoch. A resumed fit goes
    on where it stood. Put it before the ``EfficiencyMonitor``.
    """

    def __init__(self) -> None:
        self._watch: Stopwatch | None = None
        self._earlier = 0.0
        self._fitting = False

    @property
    def seconds(self) -> float:
        """Seconds of training so far; on CUDA this waits for the device."""
        return self._earlier + (_undisturbed(self._watch) if self._watch is not None else 0.0)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew with a fit; what a test loads from a checkpoint must leave the clock alone."""
        self._fitting = stage == "fit"
        if self._fitting:
            self._watch, self._earlier = Stopwatch(trainer.strategy.root_device), 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._running().start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock again after a validation within the epoch."""
        self._running().start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock behind the last batch: what follows, such as the validation loader, is no training."""
        watch = self._running()
        monitors = [callback for callback in callbacks_of(trainer) if isinstance(callback, EfficiencyMonitor)]
        steady = not any(monitor.counting for monitor in monitors)
        watch.count(0)
        if not trainer.is_last_batch:
            watch.split(steady)
            return
        watch.stop(steady)
        self._earlier = self.seconds
        watch.spans.clear()
        pl_module.log(NAME, self._earlier, on_step=False, on_epoch=True, batch_size=1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn == "fit":
            self._running().stop(steady=True)

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on from there."""
        if self._fitting:
            self._earlier = state_dict["seconds"]

    def _running(self) -> Stopwatch:
        assert self._watch is not None, "the clock is made when the fit is set up"
        return self._watch


def _undisturbed(watch: Stopwatch) -> float:
    """Return the length of an epoch's spans, disturbed steps as long as the mean of the others."""
    others: list[Span] = [span for span in watch.spans if span.steady]
    steps = sum(span.steps for span in others)
    if steps == 0:
        return watch.seconds(watch.spans)
    disturbed = sum(span.steps for span in watch.spans if not span.steady)
    return watch.seconds(others) * (1 + disturbed / steps)
