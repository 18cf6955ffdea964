"""Every scheduler of torch, made for a fit of ``TOTAL`` steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer, lr_scheduler

TOTAL = 16

Maker = Callable[[Optimizer], Any]


def _falling(step: int) -> float:
    return 0.95**step


def _factor(step: int) -> float:
    return 0.9


def _sequential(optimizer: Optimizer) -> Any:
    warmup = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    return lr_scheduler.SequentialLR(optimizer, [warmup, lr_scheduler.CosineAnnealingLR(optimizer, TOTAL)], [4])


def _chained(optimizer: Optimizer) -> Any:
    warmup = lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=4)
    return lr_scheduler.ChainedScheduler([warmup, lr_scheduler.ExponentialLR(optimizer, 0.9)], optimizer)


SCHEDULERS: dict[str, Maker] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, _falling),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, _factor),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 9], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=10),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, TOTAL + 1),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL + 1),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-3, step_size_up=4, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=TOTAL + 1),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=1e9),
    "SequentialLR": _sequential,
    "ChainedScheduler": _chained,
}
