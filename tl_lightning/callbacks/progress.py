"""How far a schedule has come: what a resumed run must know beside the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tl_lightning.errors import UserError


@dataclass
class Progress:
    """The state of a schedule.

    Attributes:
        epoch: The epoch for which the frozen set was applied last.
        history: The monitored value of every epoch.
        thaw_steps: For every stage that has thawed, the optimizer steps taken before.
        recalibrated: Whether the statistics of frozen BatchNorm layers were estimated anew.
    """

    epoch: int = 0
    history: dict[int, float] = field(default_factory=dict)
    thaw_steps: dict[int, int] = field(default_factory=dict)
    recalibrated: bool = False

    def thaw(self, depth: int, before: int | None, step: int) -> None:
        """Note the step at which the stages between two depths thawed; None: nothing was applied before."""
        for stage in range(depth, before or 0):
            self.thaw_steps.setdefault(stage, step)

    def warm_up(self, stage: int, step: int, warmup_steps: int) -> float:
        """Return the factor of a thawed stage's rate: rising linearly, 1 after ``warmup_steps``."""
        return min(1.0, (step - self.thaw_steps[stage] + 1) / (warmup_steps + 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Progress:
        """Return the progress that a checkpoint holds."""
        return cls(state["epoch"], dict(state["history"]), dict(state["thaw_steps"]), state["recalibrated"])


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with settings other than those a checkpoint was made with.

    Raises:
        UserError: One differs; it names the first.
    """
    for key, value in now.items():
        if saved.get(key, value) != value:
            raise UserError(
                f"the checkpoint was made with another {key}: {saved[key]} there, {value} here; resume with the same, "
                "or load its weights and start a new fit"
            )
