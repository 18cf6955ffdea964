"""Latency and throughput: what is measured, and that the model is left as it was found."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

from tl_lightning.errors import UserError
from tl_lightning.study.inference_cost import inference_cost, median_seconds, training_step_cost


class Slow(nn.Module):
    """Takes 4 ms an image, and 300 ms more in its first two calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.modes = set()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, image):
        self.modes.add((self.training, torch.is_grad_enabled()))
        self.calls += 1
        time.sleep(0.004 * len(image) + 0.3 * (self.calls <= 2))
        return self.layer(image).mean((2, 3))


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2))


def test_latency_and_throughput_are_those_of_a_call_without_the_warm_up():
    model = Slow()
    cost = inference_cost(model, 8, batch_sizes=(1, 8), warmup=1, repeats=1)
    assert 4 <= cost["latency_ms_batch1"] < 200
    assert 32 <= cost["latency_ms_batch8"] < 200
    assert cost["throughput_batch8"] == pytest.approx(8000 / cost["latency_ms_batch8"])
    assert model.modes == {(False, False)}


def test_the_median_is_not_moved_by_one_slow_call():
    pauses = iter([0.0, 0.0, 0.5, 0.0, 0.0])
    assert median_seconds(lambda: time.sleep(next(pauses)), "cpu", warmup=0, repeats=5) < 0.2


def test_timing_goes_on_for_the_seconds_asked_for():
    calls = []
    median_seconds(lambda: calls.append(time.sleep(0.005)), "cpu", warmup=0, repeats=1, seconds=0.05)
    assert 2 <= len(calls) <= 11


def test_operations_and_parameters_are_counted():
    cost = inference_cost(network(), 8, batch_sizes=(2,), repeats=1)
    assert cost["inference_flops"] == 2 * (8 * 8 * 3 * 4 * 9 + 4 * 2)
    assert cost["parameters"] == 4 * 27 + 4 + 8 + 8 + 2


def test_the_model_is_left_as_it_was_found():
    model = network().train()
    model[1].eval()  # a frozen BatchNorm
    model[-1].weight.grad = torch.ones(2, 4)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    inference_cost(model, 8, repeats=2)
    assert [module.training for module in model] == [True, False, True, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(model[-1].weight.grad, torch.ones(2, 4))
    model(torch.rand(2, 3, 8, 8)).sum().backward()  # no inference tensor is left in it


def test_modes_come_back_after_an_error():
    model = nn.Sequential(nn.Conv2d(4, 2, 1)).train()
    with pytest.raises(RuntimeError):
        inference_cost(model, 8)
    assert model.training


def test_autocast_is_measured_where_the_precision_asks_for_it():
    seen = []
    model = network()
    model[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    inference_cost(model, 8, batch_sizes=(1,), repeats=1, warmup=0, precision="bf16-mixed")
    assert seen[-1] == torch.bfloat16


@pytest.mark.parametrize("options", [{"batch_sizes": ()}, {"batch_sizes": (0,)}, {"repeats": 0}, {"warmup": -1}])
def test_what_cannot_be_measured_is_refused(options):
    with pytest.raises(UserError, match="inference_cost needs"):
        inference_cost(network(), 8, **options)


def test_a_training_step_has_a_forward_and_two_backward_passes():
    model = network()
    cost = training_step_cost(model, torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]), repeats=2)
    forward = 2 * (8 * 8 * 3 * 4 * 9 + 4 * 2)
    first_layer = 2 * 8 * 8 * 3 * 4 * 9  # no gradient with respect to the images
    assert cost["step_flops"] == 3 * forward - first_layer
    assert cost["step_seconds"] > 0
