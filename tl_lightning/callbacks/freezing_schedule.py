"""Which stages are frozen at which epoch: pure functions of the epoch and of what was monitored so far."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tl_lightning.backbones import Stages
from tl_lightning.errors import UserError, unknown_name

Depth = int | str
History = Mapping[int, float]  # epoch -> value of the monitored metric


def frozen_stages(stages: Stages, depth: Depth) -> int:
    """Return how many stages a depth freezes; ``"all"`` freezes the head of the staged module too.

    ``"all"`` is for a module that only computes features, its classifier being elsewhere in the LightningModule.
    """
    if isinstance(depth, bool) or not isinstance(depth, int | str):
        raise UserError(f"a freezing depth is a number or a stage name, not {depth!r}")
    if depth in ("all", len(stages)):
        return len(stages)
    return stages.depth(depth)


def first_trainable(stages: Stages, frozen: int) -> str:
    """Return the name of the first stage that trains, or what stands for none."""
    return stages.names[frozen] if frozen < len(stages) else "nothing"


def freezing_end(schedule: FreezingSchedule, stages: Stages, freeze_from: Depth | None) -> int | None:
    """Return the stage from which on all are frozen, None for no such stage.

    Raises:
        UserError: The schedule freezes every stage before it at some time.
    """
    if freeze_from is None:
        return None
    end = frozen_stages(stages, freeze_from)
    deepest = max([schedule.depth_at(stages, 0, {}), *(schedule.transitions(stages) or {}).values()])
    if deepest >= end:
        raise UserError(
            f"freeze_from={freeze_from!r} leaves nothing to train where the schedule freezes the first {deepest} stages"
        )
    return end


class FreezingSchedule(ABC):
    """Says how many stages are frozen in an epoch.

    Attributes:
        monitor: The metric that the schedule looks at, if any.
    """

    monitor: str | None = None

    @abstractmethod
    def depth_at(self, stages: Stages, epoch: int, history: History) -> int:
        """Return the number of frozen stages in an epoch, given what was monitored in the epochs before."""

    @abstractmethod
    def deepest_thaw(self, stages: Stages) -> int:
        """Return the number of stages that stay frozen to the end of the schedule."""

    @abstractmethod
    def describe(self, stages: Stages) -> str:
        """Return the schedule in one line; two schedules that do the same read the same."""

    def transitions(self, stages: Stages) -> dict[int, int] | None:
        """Return epoch -> number of frozen stages, or None if the epochs depend on the training."""
        return None

    def is_static(self, stages: Stages) -> bool:
        """Whether nothing ever thaws."""
        transitions = self.transitions(stages)
        return transitions is not None and len(set(transitions.values())) == 1


@dataclass(frozen=True)
class ByEpoch(FreezingSchedule):
    """Depths at given epochs, each until the next: ``{0: "head", 3: "layer4", 6: "none"}``."""

    depths: Mapping[int, Depth]

    def __post_init__(self) -> None:
        wrong = [e for e in self.depths if isinstance(e, bool) or not isinstance(e, int) or e < 0]
        if wrong:
            raise UserError(f"the schedule names epoch {wrong[0]!r}: epochs are whole numbers from 0")
        if 0 not in self.depths:
            raise UserError("the schedule does not say what is frozen at first: give epoch 0, for example {0: 'head'}")

    def depth_at(self, stages: Stages, epoch: int, history: History) -> int:
        """Return the depth given for the last epoch named that is not after ``epoch``."""
        return frozen_stages(stages, self.depths[max(e for e in self.depths if e <= epoch)])

    def deepest_thaw(self, stages: Stages) -> int:
        """Return the depth at the last epoch named."""
        return self.transitions(stages)[max(self.depths)]

    def transitions(self, stages: Stages) -> dict[int, int]:
        """Return epoch -> number of frozen stages."""
        return {epoch: frozen_stages(stages, self.depths[epoch]) for epoch in sorted(self.depths)}

    def describe(self, stages: Stages) -> str:
        """Return the first trainable stage at every change."""
        return _describe_transitions(stages, self.transitions(stages))


@dataclass(frozen=True)
class Gradual(FreezingSchedule):
    """One stage more every ``every`` epochs, from ``start`` on (Howard & Ruder 2018, ULMFiT, section 3.3).

    Args:
        every: Epochs between two thaws.
        start: Depth at epoch 0.
        stop: Depth at which no more is thawed.
    """

    every: int = 1
    start: Depth = "head"
    stop: Depth = "none"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"a stage can thaw every epoch at most: every must be 1 or more, not {self.every}")

    def depth_at(self, stages: Stages, epoch: int, history: History) -> int:
        """Return the start less one stage for every ``every`` epochs."""
        start, stop = _range(stages, self.start, self.stop)
        return max(stop, start - epoch // self.every)

    def deepest_thaw(self, stages: Stages) -> int:
        """Return the depth of ``stop``."""
        return _range(stages, self.start, self.stop)[1]

    def transitions(self, stages: Stages) -> dict[int, int]:
        """Return epoch -> number of frozen stages."""
        start, stop = _range(stages, self.start, self.stop)
        return {k * self.every: start - k for k in range(start - stop + 1)}

    def describe(self, stages: Stages) -> str:
        """Return the first trainable stage at every change."""
        return _describe_transitions(stages, self.transitions(stages))


@dataclass(frozen=True)
class OnPlateau(FreezingSchedule):
    """One stage more whenever a metric has not improved for some epochs.

    The metric is one that the module logs in validation (in training, for a fit without validation); with several
    validations an epoch the last one counts. A thaw takes effect at the next epoch.

    Args:
        monitor: Name of the metric.
        mode: Whether a ``"min"`` or a ``"max"`` of it is sought.
        patience: Epochs without improvement before a thaw.
        min_delta: Smallest change that counts as improvement.
        start: Depth at epoch 0.
        stop: Depth at which no more is thawed.
    """

    monitor: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    patience: int = 2
    min_delta: float = 0.0
    start: Depth = "head"
    stop: Depth = "none"

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise unknown_name("mode", self.mode, ["min", "max"])
        if self.patience < 1:
            raise UserError(f"patience must be at least one epoch, not {self.patience}")

    def depth_at(self, stages: Stages, epoch: int, history: History) -> int:
        """Return the start less one stage for every plateau before ``epoch``."""
        depth, stop = _range(stages, self.start, self.stop)
        best, waited = None, 0
        for observed in sorted(e for e in history if e < epoch):
            value = history[observed] if self.mode == "min" else -history[observed]
            if best is None or value < best - self.min_delta:
                best, waited = value, 0
                continue
            waited += 1
            if waited == self.patience:
                depth, waited = max(stop, depth - 1), 0
        return depth

    def deepest_thaw(self, stages: Stages) -> int:
        """Return the depth of ``stop``."""
        return _range(stages, self.start, self.stop)[1]

    def describe(self, stages: Stages) -> str:
        """Return the rule and its bounds."""
        start, stop = (first_trainable(stages, d) for d in _range(stages, self.start, self.stop))
        rule = f"{self.mode} of {self.monitor}, patience {self.patience}, min_delta {self.min_delta:g}"
        return f"on plateau ({rule}): {start} to {stop}"


def as_schedule(spec: Depth | Mapping[int, Depth] | FreezingSchedule) -> FreezingSchedule:
    """Return the schedule for what a user may give: a depth, depths by epoch, or a schedule."""
    if isinstance(spec, FreezingSchedule):
        return spec
    return ByEpoch(dict(spec)) if isinstance(spec, Mapping) else ByEpoch({0: spec})


def check_schedule(schedule: FreezingSchedule, stages: Stages, epochs: int | None, allow_never_trained: bool) -> None:
    """Refuse a schedule that cannot do what it says.

    Args:
        schedule: The schedule.
        stages: The stages it is about.
        epochs: Length of the fit; None if unknown.
        allow_never_trained: Whether stages may stay frozen to the end; a static depth may anyway.

    Raises:
        UserError: A stage would freeze again, a thaw lies after the last epoch, or stages would never train.
    """
    transitions = schedule.transitions(stages)
    if transitions is not None:
        _check_order(stages, transitions)
        _check_end(stages, transitions, epochs)
    never = schedule.deepest_thaw(stages)
    if never and not (allow_never_trained or schedule.is_static(stages)):
        raise UserError(
            f"the schedule never trains {', '.join(stages.names[:never])}: thaw them, or say that this is wanted with "
            "allow_never_trained=True"
        )


def _check_order(stages: Stages, transitions: Mapping[int, int]) -> None:
    for before, after in itertools.pairwise(transitions):
        if transitions[after] > transitions[before]:
            again = stages.names[transitions[before] : transitions[after]]
            raise UserError(
                f"the schedule thaws in the wrong order: {', '.join(again)} train at epoch {before} and would freeze "
                f"again at epoch {after}; thaw from the head down"
            )


def _check_end(stages: Stages, transitions: Mapping[int, int], epochs: int | None) -> None:
    for epoch, depth in transitions.items():
        if epochs is not None and epoch >= epochs:
            raise UserError(
                f"the schedule thaws {first_trainable(stages, depth)!r} at epoch {epoch}, past the end of a fit of "
                f"{epochs} epochs (0 to {epochs - 1})"
            )


def _range(stages: Stages, start: Depth, stop: Depth) -> tuple[int, int]:
    first, last = frozen_stages(stages, start), frozen_stages(stages, stop)
    if last > first:
        raise UserError(f"the schedule thaws in the wrong order: it starts at {start!r} and stops above it at {stop!r}")
    return first, last


def _describe_transitions(stages: Stages, transitions: Mapping[int, int]) -> str:
    changes = dict[int, int]()
    for epoch, depth in transitions.items():
        if depth not in changes.values():
            changes[epoch] = depth
    return ", ".join(f"epoch {e}: {first_trainable(stages, d)}" for e, d in changes.items())
