"""Learning rates by stage, applied in the optimizer step alone.

The rate of a group is ``max(lr, stage_lr_floor) * stage_lr_scale * stage_warmup``. Only the update itself sees it:
before and after, ``group["lr"]`` is the base rate that schedulers, the learning-rate finder and SWA set, so the
ratio between stages is exact whatever they do. (The key is not ``lr_scale``: timm's schedulers multiply by that.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

Rate = float | Tensor

SCALE, WARMUP, FLOOR = "stage_lr_scale", "stage_warmup", "stage_lr_floor"
PEAK = "stage_lr_peak"  # what the floor is a share of


def install_lr_scale(optimizer: Optimizer) -> None:
    """Make every step of ``optimizer`` use the rates of ``effective_lr``; a second call changes nothing."""
    if not hasattr(optimizer, "_stage_lr_scale"):
        optimizer._stage_lr_scale = _StepScale(optimizer)  # type: ignore[attr-defined]


def effective_lr(group: dict[str, Any]) -> Rate:
    """Return the rate that the next step uses for a parameter group."""
    lr, factor, floor = group["lr"], group.get(SCALE, 1.0) * group.get(WARMUP, 1.0), group.get(FLOOR, 0.0)
    base = floor if floor > 0 and bool(lr < floor) else lr
    return base if factor == 1.0 else base * factor


def effective_lrs(optimizer: Optimizer) -> dict[str, float]:
    """Return the rate that the next step uses, by group name."""
    return {
        group.get("name", f"group{i}"): float(effective_lr(group)) for i, group in enumerate(optimizer.param_groups)
    }


class _StepScale:
    """Swaps the scaled rates in for the update and the base rates back after it.

    A closure (Lightning runs forward and backward in it) runs before the swap: a training step that reads or sets
    ``lr`` meets base rates.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._base: list[Rate] | None = None
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)
        # a step that raised must not leave scaled rates in a checkpoint
        optimizer.register_state_dict_pre_hook(self._restore)

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._restore(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._scale(optimizer)
            return None
        return (args[0], *args[2:]), {**kwargs, "closure": _ScaleAfter(closure, self, optimizer)}

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._restore(optimizer)

    def _scale(self, optimizer: Optimizer) -> None:
        if self._base is None:
            self._base = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = effective_lr(group)

    def _restore(self, optimizer: Optimizer) -> None:
        if self._base is not None:
            for group, lr in zip(optimizer.param_groups, self._base, strict=True):
                group["lr"] = lr
            self._base = None


class _ScaleAfter:
    """A closure that is followed by the swap to scaled rates."""

    def __init__(self, closure: Callable[[], Any], scale: _StepScale, optimizer: Optimizer) -> None:
        self.closure, self.scale, self.optimizer = closure, scale, optimizer

    def __call__(self) -> Any:
        self.scale._restore(self.optimizer)
        result = self.closure()
        self.scale._scale(self.optimizer)
        return result
