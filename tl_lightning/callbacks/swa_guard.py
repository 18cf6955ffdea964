"""Stochastic weight averaging resets every BatchNorm layer; frozen ones must keep their statistics."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor

from tl_lightning.callbacks.frozen import FrozenStages
from tl_lightning.callbacks.stage_callback import callbacks_of


class SwaGuard:
    """Keeps the frozen buffers over the epoch that Lightning's SWA appends.

    That epoch sets the statistics of all BatchNorm layers to nothing and re-estimates them with forward passes. A
    frozen layer is in eval mode and would stay at nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def remember(self, trainer: pl.Trainer, frozen: FrozenStages) -> None:
        """Keep the frozen buffers, at the end of an epoch."""
        if self._swa(trainer) is not None:
            self._kept = {name: buffer.clone() for name, buffer in frozen.buffers().items()}

    def restore(self, trainer: pl.Trainer, frozen: FrozenStages) -> None:
        """Give the frozen buffers back, at the start of the appended epoch."""
        swa = self._swa(trainer)
        if swa is not None and self._kept and trainer.current_epoch == swa.swa_end + 1:
            for name, buffer in frozen.buffers().items():
                buffer.copy_(self._kept[name])

    @staticmethod
    def _swa(trainer: pl.Trainer) -> StochasticWeightAveraging | None:
        return next((c for c in callbacks_of(trainer) if isinstance(c, StochasticWeightAveraging)), None)
