"""Early stopping that ends with the weights of the best epoch."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from tl_lightning.callbacks.averaged_weights import refuse_averaged_weights


class BestEpoch(EarlyStopping):
    """Stops when a validation metric no longer improves, and gives back weights and metrics of the best epoch.

    Lightning's ``EarlyStopping`` ends with the last weights, which are the worse ones by then, and leaves the rest to
    a checkpoint file; here the best weights are kept in memory (and in checkpoints, for a fit that is resumed). After
    the fit ``trainer.callback_metrics`` holds the metrics of the best epoch. Prechelt 1998, "Early stopping - but
    when?".

    Args:
        monitor: Name of the metric.
        mode: Whether a low or a high value is good.
        patience: Validations without improvement after which the fit ends.
        min_delta: Smallest change that counts as an improvement.

    Raises:
        UserError: At the start of the fit, beside a callback that validates averaged weights.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(
            monitor=monitor, mode=mode, patience=patience, min_delta=min_delta, check_on_train_epoch_end=False
        )
        self._weights: dict[str, Tensor] = {}
        self._metrics: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._epoch = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_averaged_weights(self, trainer)
            self._weights, self._metrics, self._latest, self._epoch = {}, {}, {}, -1
            self.best_score = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
            self.wait_count = self.stopped_epoch = 0
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep weights and metrics where the metric has improved."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        before = float(self.best_score)
        super().on_validation_end(trainer, pl_module)
        self._latest = _metrics(trainer)
        if float(self.best_score) != before:  # not by wait_count, which a metric that is NaN leaves as it was
            self._weights = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
            self._metrics, self._epoch = self._latest, trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the training metrics of that epoch, which are there only now."""
        if self._epoch == trainer.current_epoch:
            # those that the last validation did not see as they are now; repr, since NaN is not equal to itself
            now = _metrics(trainer).items()
            new = {name: value for name, value in now if repr(value) != repr(self._latest.get(name))}
            self._metrics = {**self._metrics, **new}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give back the best weights."""
        if self._weights:
            pl_module.load_state_dict(self._weights)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give back the metrics of the best epoch."""
        for name, value in self._metrics.items():
            if name in trainer.callback_metrics:
                known = trainer.callback_metrics[name]
                trainer.callback_metrics[name] = known.new_tensor(value)
        self._weights = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch so far."""
        return {**super().state_dict(), "weights": self._weights, "metrics": self._metrics, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best epoch of the checkpoint."""
        super().load_state_dict(state_dict)
        self._weights, self._metrics = dict(state_dict["weights"]), dict(state_dict["metrics"])
        self._epoch = state_dict.get("epoch", -1)  # an older checkpoint does not have it


def _metrics(trainer: pl.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
