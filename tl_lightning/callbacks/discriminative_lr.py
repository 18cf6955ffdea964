"""Learning rates that differ by stage, as exact factors of the rate that the schedule sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from tl_lightning.backbones import Stages
from tl_lightning.callbacks.stage_callback import StageCallback, the_optimizer
from tl_lightning.errors import UserError
from tl_lightning.optim.lr_scale import SCALE


class DiscriminativeLR(StageCallback):
    """Scales the learning rate of every stage (Howard & Ruder 2018, ULMFiT, section 3.2; Clark et al. 2020, ELECTRA).

    The factor is applied in the optimizer step alone: schedulers, the learning-rate finder and SWA go on setting the
    base rate, and the ratio between stages stays exact. Parameters outside the module keep the base rate.

    Args:
        decay: Factor from one stage to the one below; the head has the base rate.
        rates: Instead, the factor of every stage, by name.
        attribute: Name of the trained submodule; ``""`` for the whole LightningModule.
        stages: Its stages, as for ``ProgressiveUnfreezing``, whose stages are used if it has the same attribute.

    Raises:
        UserError: Not exactly one of ``decay`` and ``rates`` is given, a factor is negative, or a stage has none.
    """

    def __init__(
        self,
        *,
        decay: float | None = None,
        rates: Mapping[str, float] | None = None,
        attribute: str = "backbone",
        stages: Sequence[str] | Stages | None = None,
    ) -> None:
        super().__init__(attribute, stages)
        if (decay is None) == (rates is None):
            raise UserError("DiscriminativeLR takes either decay or rates")
        if decay is not None and not decay > 0:
            raise UserError(f"the decay from stage to stage must be above 0, not {decay}")
        negative = [name for name, rate in (rates or {}).items() if not rate >= 0]
        if negative:
            raise UserError(f"the factor of stage {negative[0]!r} must not be negative: {(rates or {})[negative[0]]}")
        self.decay, self.rates = decay, dict(rates) if rates is not None else None
        self._fitting = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make sure that the optimizer will be split."""
        self._fitting = stage == "fit"
        super().setup(trainer, pl_module, stage)

    def scales(self, stages: Stages) -> dict[str, float]:
        """Return the factor of every stage, by name.

        Raises:
            UserError: ``rates`` names an unknown stage, or leaves one out.
        """
        if self.decay is not None:
            return {name: self.decay ** (len(stages) - 1 - k) for k, name in enumerate(stages.names)}
        factors = {stages.names[stages.index(name)]: rate for name, rate in (self.rates or {}).items()}
        missing = [name for name in stages.names if name not in factors]
        if missing:
            raise UserError(
                f"rates leaves out stage {missing[0]!r}: give every stage its factor ({', '.join(stages.names)})"
            )
        return factors

    def resolve(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the stages and check that every one has a factor."""
        super().resolve(trainer, pl_module)
        self.scales(self.stages)

    def after_optimizer(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Give the groups their factors."""
        self._set(optimizer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the groups their factors again: a resumed optimizer has loaded its own."""
        super().on_train_start(trainer, pl_module)
        self._set(the_optimizer(trainer))

    def _set(self, optimizer: Optimizer) -> None:
        factors = list(self.scales(self.stages).values())
        for stage, group in self.staged_groups(optimizer):
            group[SCALE] = factors[stage]

    def state_dict(self) -> dict[str, Any]:
        """Return the factors, to be compared at resume."""
        return {"decay": self.decay, "rates": self.rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the checkpoint was made with the same factors.

        Raises:
            UserError: It was not.
        """
        for key, now in self.state_dict().items():
            if self._fitting and state_dict[key] != now:
                raise UserError(f"the checkpoint was made with another {key}: {state_dict[key]} there, {now} here")
