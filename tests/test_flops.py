"""The counter against operations counted by hand and against the sum over single convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tl_lightning.flops import flop_counter


def count(module: nn.Module, *shape: int, input_gradient: bool = True) -> tuple[int, int]:
    """Return the operations of the forward and of the backward pass."""
    x = torch.rand(shape, requires_grad=input_gradient)
    with flop_counter() as forward:
        y = module(x)
    with flop_counter() as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_costs_twice_as_much_backward_whatever_its_groups(groups):
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=groups, bias=False)
    forward, backward = count(layer, 4, 8, 10, 10)
    assert forward == 2 * 4 * 100 * 16 * (8 // groups) * 9
    assert backward == 2 * forward


def test_a_transposed_convolution_too():
    forward, backward = count(nn.ConvTranspose2d(8, 16, 2, stride=2, groups=2, bias=False), 3, 8, 5, 5)
    assert forward == 2 * 3 * 25 * 8 * (16 // 2) * 4
    assert backward == 2 * forward


def test_only_the_gradients_that_are_wanted_count():
    layer = nn.Conv2d(8, 8, 3, groups=8, bias=False)
    forward, backward = count(layer, 2, 8, 6, 6, input_gradient=False)
    assert backward == forward
    layer.weight.requires_grad_(False)
    assert count(layer, 2, 8, 6, 6)[1] == forward


def test_a_linear_layer_is_counted_as_before():
    forward, backward = count(nn.Linear(6, 5, bias=False), 7, 6)
    assert (forward, backward) == (2 * 7 * 6 * 5, 4 * 7 * 6 * 5)
