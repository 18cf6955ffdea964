"""Learning-rate schedules in closed form, as a factor of the base rate by optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from tl_lightning.errors import UserError, unknown_name

ScheduleName = Literal["constant", "step", "cosine", "one_cycle"]

_MILESTONES = (0.5, 0.75)  # shares of the steps after warm-up at which "step" divides the rate by ten (He et al. 2016)
_ONE_CYCLE_RISE, _ONE_CYCLE_START, _ONE_CYCLE_END = 0.3, 1 / 25, 1 / 25e4  # as torch's OneCycleLR


def lr_multiplier(schedule: ScheduleName, total_steps: int, warmup_steps: int = 0) -> Callable[[int], float]:
    """Return the factor of the base learning rate at every optimizer step, for ``LambdaLR``.

    Args:
        schedule: ``"constant"``; ``"step"``: a tenth from half, a hundredth from three quarters of the steps on;
            ``"cosine"``: half a cosine from 1 towards 0 (Loshchilov & Hutter 2017); ``"one_cycle"``: a cosine rise from
            1/25 over 30 % of the steps and a cosine fall to 1/250,000 (Smith 2018).
        total_steps: Optimizer steps of the whole fit; beyond them the last factor holds.
        warmup_steps: Steps of a linear rise from ``1 / (warmup_steps + 1)`` before the schedule begins; none with
            ``"one_cycle"``, which begins with a rise of its own.

    Raises:
        UserError: Unknown schedule, or the warm-up is as long as the fit.
    """
    if schedule not in get_args(ScheduleName):
        raise unknown_name("schedule", schedule, get_args(ScheduleName))
    if total_steps < 1:
        raise UserError(f"a schedule needs at least one step, not {total_steps}")
    if not 0 <= warmup_steps < total_steps:
        raise UserError(f"warm-up of {warmup_steps} steps does not fit into {total_steps} steps")
    return Multiplier(schedule, total_steps, warmup_steps)


@dataclass(frozen=True)
class Multiplier:
    """A picklable schedule; calling it with a step returns the factor of the base rate."""

    schedule: ScheduleName
    total_steps: int
    warmup_steps: int = 0

    def __call__(self, step: int) -> float:
        """Return the factor of the base rate at a step, counted from 0."""
        step = min(max(step, 0), self.total_steps - 1)
        if self.schedule == "one_cycle":
            return self._one_cycle(step)
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "step":
            return 0.1 ** sum(progress >= milestone for milestone in _MILESTONES)
        return 1.0

    def _one_cycle(self, step: int) -> float:
        peak = max(_ONE_CYCLE_RISE * self.total_steps - 1, 0)
        last = self.total_steps - 1
        if step <= peak and peak > 0:
            return _anneal(_ONE_CYCLE_START, 1.0, step / peak)
        return _anneal(1.0, _ONE_CYCLE_END, (step - peak) / max(last - peak, 1))


def _anneal(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
