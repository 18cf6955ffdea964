from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, lr_scheduler

from tl_lightning.errors import UserError
from tl_lightning.optim import lr_multiplier

NAMES = ["constant", "step", "cosine", "one_cycle"]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(total=st.integers(1, 300), warmup=st.integers(0, 50))
def test_factors_lie_between_0_and_1_and_peak_once_warm(name: str, total: int, warmup: int) -> None:
    warmup = min(warmup, total - 1)
    factors = [lr_multiplier(name, total, warmup)(step) for step in range(total)]
    assert all(0 <= f <= 1 for f in factors)
    if name != "one_cycle":
        assert factors[warmup] == 1
        assert factors[:warmup] == sorted(factors[:warmup])
        assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


@pytest.mark.parametrize("total", [10, 37, 100])
def test_one_cycle_is_that_of_torch(total: int) -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    theirs = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
    ours = lr_multiplier("one_cycle", total)
    for step in range(total):
        assert 0.1 * ours(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            theirs.step()


def test_closed_forms() -> None:
    cosine = lr_multiplier("cosine", 12, 2)
    assert [cosine(0), cosine(1), cosine(2)] == [1 / 3, 2 / 3, 1]
    assert cosine(7) == pytest.approx(0.5)
    assert cosine(11) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    step = lr_multiplier("step", 8)
    assert [step(k) for k in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert lr_multiplier("constant", 5)(4) == 1
    assert cosine(1000) == cosine(11)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_can_be_copied_pickled_and_saved_by_lambda_lr(name: str) -> None:
    multiplier = lr_multiplier(name, 20, 3)
    for other in (pickle.loads(pickle.dumps(multiplier)), copy.deepcopy(multiplier)):
        assert [other(k) for k in range(20)] == [multiplier(k) for k in range(20)]
    schedulers = [lr_scheduler.LambdaLR(SGD([nn.Parameter(torch.zeros(1))], 0.1), multiplier) for _ in range(2)]
    for _ in range(5):
        schedulers[0].optimizer.step()
        schedulers[0].step()
    schedulers[1].load_state_dict(copy.deepcopy(schedulers[0].state_dict()))
    assert schedulers[1].get_last_lr() == [0.1 * multiplier(5)]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="unknown schedule 'cosin': did you mean cosine"):
        lr_multiplier("cosin", 10)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="warm-up of 10 steps does not fit into 10 steps"):
        lr_multiplier("cosine", 10, 10)
    with pytest.raises(UserError, match="at least one step"):
        lr_multiplier("cosine", 0)
