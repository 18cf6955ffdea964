"""Trap 5: every scheduler of torch, over two thaws, follows the rates it has on an optimizer that was never split."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, lr_scheduler, swa_utils

sys.path.append(str(Path(__file__).parents[1] / "callbacks"))
from fits import Plain, Recorder, TinyNet, fit

from tl_lightning.callbacks import DiscriminativeLR, ProgressiveUnfreezing

BATCHES, EPOCHS = 3, 4
STEPS = BATCHES * EPOCHS
RATES = (0.1, 0.02)  # of the two groups that the module itself makes: conv1 and bn1, and the rest

Make = Callable[[torch.optim.Optimizer], Any]


def halve(step: int) -> float:
    return 0.5**step


def third(step: int) -> float:
    return 1 / (1 + step)


def warm_then_cosine(optimizer: torch.optim.Optimizer) -> Any:
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    return lr_scheduler.SequentialLR(optimizer, [warm, lr_scheduler.CosineAnnealingLR(optimizer, 8)], milestones=[4])


def lambda_then_cyclic(optimizer: torch.optim.Optimizer) -> Any:
    first = lr_scheduler.LambdaLR(optimizer, [halve, third])
    second = lr_scheduler.CyclicLR(optimizer, [0.01, 0.002], [0.1, 0.02], step_size_up=2)
    return lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[5])


SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [halve, third]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, [lambda _: 0.9, lambda _: 0.7]),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 7], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.2, total_iters=7),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, STEPS, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, [0.01, 0.002], [0.1, 0.02], step_size_up=3),
    "CyclicLR without momentum": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.3, 0.1], total_steps=STEPS),
    "SequentialLR": warm_then_cosine,
    "SequentialLR of lists": lambda_then_cyclic,
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.LambdaLR(o, [halve, third])]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, min_lr=[0.02, 0.001]),
    "SWALR": lambda o: swa_utils.SWALR(o, [0.05, 0.01], anneal_epochs=5),
}

# the rate of the first of RATES after k steps, from the definitions, not from torch's code
CLOSED_FORM: dict[str, Callable[[int], float]] = {
    "LambdaLR": lambda k: 0.1 * 0.5**k,
    "MultiplicativeLR": lambda k: 0.1 * 0.9**k,
    "StepLR": lambda k: 0.1 * 0.5 ** (k // 2),
    "MultiStepLR": lambda k: 0.1 * 0.5 ** ((k >= 3) + (k >= 7)),
    "ConstantLR": lambda k: 0.1 * (0.3 if k < 5 else 1),
    "LinearLR": lambda k: 0.1 * (0.2 + 0.8 * min(k, 7) / 7),
    "ExponentialLR": lambda k: 0.1 * 0.8**k,
    "PolynomialLR": lambda k: 0.1 * (1 - k / STEPS) ** 2,
    "CosineAnnealingLR": lambda k: 1e-4 + (0.1 - 1e-4) * (1 + math.cos(math.pi * k / STEPS)) / 2,
    "CosineAnnealingWarmRestarts": lambda k: 0.05 * (1 + math.cos(math.pi * (k / 4 if k < 4 else (k - 4) / 8))),
    "CyclicLR": lambda k: 0.01 + 0.09 * (1 - abs(k % 6 - 3) / 3),
    "CyclicLR without momentum": lambda k: 0.01 + 0.09 * (1 - abs(k % 4 - 2) / 2),
}


def optimizer_of(parameters: list[Any]) -> SGD:
    groups = [{"params": parameters[:3], "lr": RATES[0]}, {"params": parameters[3:], "lr": RATES[1]}]
    return SGD(groups, momentum=0.9)


def reference(name: str) -> list[tuple[list[float], list[float]]]:
    """Return rates and momenta at every step of the same scheduler on an optimizer that is not split."""
    optimizer = optimizer_of(list(TinyNet().parameters()))
    scheduler = SCHEDULERS[name](optimizer)
    table = []
    for _ in range(STEPS):
        table.append(([g["lr"] for g in optimizer.param_groups], [g["momentum"] for g in optimizer.param_groups]))
        optimizer.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    return table


class Constant(Plain):
    """Logs a metric that never improves, so that ReduceLROnPlateau acts."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("train/metric", 1.0)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_trap_05_every_scheduler_goes_on_over_two_thaws(name: str) -> None:
    # Seen to fail without `expand_schedulers`: LambdaLR, MultiplicativeLR, CyclicLR, CosineAnnealingWarmRestarts and
    # ReduceLROnPlateau raise (two values for eight groups), the others give shallow groups the rates of the second.
    momenta: list[list[float]] = []

    class Momenta(Recorder):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            momenta.append([g["momentum"] for g in trainer.optimizers[0].param_groups])

    def configure(parameters: list[Any]) -> Any:
        optimizer = optimizer_of(parameters)
        scheduler = {"scheduler": SCHEDULERS[name](optimizer), "interval": "step", "monitor": "train/metric"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    seen = Momenta()
    callbacks = [ProgressiveUnfreezing({0: "head", 1: "layer2", 3: "none"}), DiscriminativeLR(decay=0.5), seen]
    fit(Constant(configure=configure), callbacks, EPOCHS)
    scale = {"conv1": 0.125, "layer1": 0.25, "layer2": 0.5, "fc": 1.0}
    assert len(seen.rates) == STEPS
    for k, (rates, (expected, expected_momenta)) in enumerate(zip(seen.rates.values(), reference(name), strict=True)):
        for group, rate in rates.items():
            stage, own = group.split("/group")
            assert rate == pytest.approx(expected[int(own)] * scale[stage], rel=1e-9, abs=1e-15), f"{group}, step {k}"
        assert momenta[k] == [expected_momenta[int(group.split("/group")[1])] for group in rates]
        if name in CLOSED_FORM:
            assert rates["conv1/group0"] == pytest.approx(CLOSED_FORM[name](k) * 0.125, rel=1e-6, abs=1e-12)


def test_trap_05_no_scheduler_of_torch_is_left_out() -> None:
    known = {name for name, kind in inspect.getmembers(lr_scheduler, inspect.isclass) if is_scheduler(kind)}
    assert known - {"LRScheduler", "_LRScheduler"} <= {name.split()[0] for name in SCHEDULERS}


def is_scheduler(kind: type) -> bool:
    return issubclass(kind, lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau)


FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "optimizer": lambda o, s: o,
    "list of optimizers": lambda o, s: [o],
    "two lists": lambda o, s: ([o], [s]),
    "two lists with a dictionary": lambda o, s: ([o], [{"scheduler": s, "interval": "epoch"}]),
    "dictionary": lambda o, s: {"optimizer": o, "lr_scheduler": s},
    "dictionary of a dictionary": lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s}},
    "list of dictionaries": lambda o, s: [{"optimizer": o, "lr_scheduler": s}],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_configure_optimizers_may_return(form: str) -> None:
    def configure(parameters: list[Any]) -> Any:
        optimizer = optimizer_of(parameters)
        return FORMS[form](optimizer, lr_scheduler.LambdaLR(optimizer, [halve, third]))

    seen = Recorder()
    done = fit(Plain(configure=configure), [ProgressiveUnfreezing({0: "head", 1: "none"}), seen], 2)
    assert len(done.optimizers[0].param_groups) == 4
    second = seen.rates[(1, 0)]
    scheduled = "list of optimizers" != form != "optimizer"
    assert second["conv1/group0"] == pytest.approx(0.1 * (0.5 if scheduled else 1))
    assert second["fc/group1"] == pytest.approx(0.02 * (0.5 if scheduled else 1))
