"""The rate by stage acts in the update and nowhere else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tl_lightning.optim import effective_lrs, install_lr_scale

OPTIMIZERS = [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam]


def pair(optimizer_class: Any = torch.optim.SGD, **options: Any) -> tuple[nn.Parameter, nn.Parameter, Any]:
    one, other = (nn.Parameter(torch.full((3,), 2.0)) for _ in range(2))
    groups = [{"params": [one], "name": "one"}, {"params": [other], "name": "other"}]
    optimizer = optimizer_class(groups, lr=0.1, **options)
    install_lr_scale(optimizer)
    return one, other, optimizer


@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_a_scaled_group_moves_as_with_the_scaled_rate(optimizer_class: Any) -> None:
    one, _, optimizer = pair(optimizer_class)
    optimizer.param_groups[0]["stage_lr_scale"] = 0.25
    reference = nn.Parameter(torch.full((3,), 2.0))
    plain = optimizer_class([reference], lr=0.025)
    for _ in range(3):
        one.grad, reference.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        plain.step()
        assert torch.equal(one, reference)
        assert optimizer.param_groups[0]["lr"] == 0.1


def test_installing_twice_scales_once() -> None:
    one, _, optimizer = pair()
    install_lr_scale(optimizer)
    optimizer.param_groups[0]["stage_lr_scale"] = 0.5
    one.grad = torch.ones(3)
    optimizer.step()
    assert torch.allclose(one, torch.full((3,), 2.0 - 0.05))


def test_a_closure_reads_and_sets_base_rates() -> None:
    one, _, optimizer = pair()
    optimizer.param_groups[0]["stage_lr_scale"] = 0.5
    seen: list[float] = []

    def closure() -> torch.Tensor:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.param_groups[0]["lr"] = 0.4  # a training step with a schedule of its own
        one.grad = torch.ones(3)
        return torch.zeros(())

    optimizer.step(closure)
    assert seen == [0.1]
    assert torch.allclose(one, torch.full((3,), 2.0 - 0.2))
    assert optimizer.param_groups[0]["lr"] == 0.4
    optimizer.step(closure=closure)
    assert seen == [0.1, 0.4]


def test_an_optimizer_that_calls_the_closure_again_meets_base_rates_again() -> None:
    class Twice(torch.optim.SGD):
        """Calls the closure twice, as sharpness-aware optimizers do."""

        def step(self, closure: Any = None) -> Any:
            closure()
            self.rate_between = self.param_groups[0]["lr"]
            return super().step(closure)

    one, _, optimizer = pair(Twice)
    optimizer.param_groups[0]["stage_lr_scale"] = 0.5
    seen: list[float] = []

    def closure() -> None:
        seen.append(optimizer.param_groups[0]["lr"])
        one.grad = torch.ones(3)

    optimizer.step(closure)
    assert seen == [0.1, 0.1]
    assert optimizer.rate_between == 0.05
    assert torch.allclose(one, torch.full((3,), 2.0 - 0.05))


def test_a_step_that_raised_leaves_no_scaled_rate_in_a_checkpoint() -> None:
    # Seen to fail without the state-dict hook: the saved rate was 0.05, and after a resume it was scaled again.
    one, _, optimizer = pair(torch.optim.Adam)
    optimizer.param_groups[0]["stage_lr_scale"] = 0.5
    one.grad = torch.ones(3).to_sparse()  # which Adam refuses
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.1


def test_rates_that_are_tensors() -> None:
    one = nn.Parameter(torch.full((3,), 2.0))
    optimizer = torch.optim.SGD([one], lr=torch.tensor(0.1))
    install_lr_scale(optimizer)
    lr = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0] |= {"stage_lr_scale": 0.5, "stage_lr_floor": 0.3}
    one.grad = torch.ones(3)
    optimizer.step()
    assert torch.allclose(one, torch.full((3,), 2.0 - 0.15))
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.1)


def test_copies_of_an_optimizer_are_plain() -> None:
    _, _, optimizer = pair()
    assert copy.deepcopy(optimizer).param_groups[0]["lr"] == 0.1


@settings(deadline=None)
@given(lr=st.floats(1e-9, 10), scale=st.floats(0, 2), warmup=st.floats(0, 1), floor=st.floats(0, 1))
def test_the_effective_rate_is_the_product(lr: float, scale: float, warmup: float, floor: float) -> None:
    _, _, optimizer = pair()
    optimizer.param_groups[0] |= {"lr": lr, "stage_lr_scale": scale, "stage_warmup": warmup, "stage_lr_floor": floor}
    rates = effective_lrs(optimizer)
    assert rates["one"] == pytest.approx(max(lr, floor) * scale * warmup)
    assert rates["other"] == 0.1
