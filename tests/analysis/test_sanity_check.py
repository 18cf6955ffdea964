from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tl_lightning.analysis import estimate_batch_norm, grad_cam, randomisation_check, weight_randomisation_cascade
from tl_lightning.backbones import Stages
from tl_lightning.errors import UserError


def net(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), activation(), nn.Conv2d(8, 8, 3, stride=2), activation(), nn.Conv2d(8, 16, 3)]
    return nn.Sequential(*layers, activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def test_stages_are_looked_at_from_the_head_to_the_first_and_maps_start_with_the_trained_ones():
    model = net()
    stages = Stages(model)
    found = randomisation_check(model, images(), stages, steps=3, kept=2)
    depths = [stages.index(name) for name in found.stages]
    assert depths[0] == len(stages) - 1
    assert depths[-1] == 0
    assert depths == sorted(set(depths), reverse=True)
    assert len(depths) == 3
    assert found.grad_cam.shape == found.guided.shape == (3, 6)
    assert found.grad_cam_maps.shape == found.guided_maps.shape == (4, 2, 20, 20)
    np.testing.assert_array_equal(found.grad_cam_maps[0], grad_cam(model, images()).maps[:2])


def test_the_head_alone_leaves_guided_backpropagation_alike_and_a_whole_cascade_does_not_leave_grad_cam():
    model = net()
    found = randomisation_check(model, images(12), Stages(model), steps=99)
    assert len(found.stages) == len(Stages(model))
    assert found.guided[0].mean() > found.guided[-1].mean()
    assert found.grad_cam[-1].mean() < 0.9


def test_all_maps_explain_the_class_that_the_trained_network_predicts():
    model = net()
    found = randomisation_check(model, images(), Stages(model), steps=1, kept=6, seed=3)
    assert found.stages == Stages(model).names[:1]
    *_, (_, random) = weight_randomisation_cascade(model, ["8", "4", "2", "0"], seed=3)
    expected = grad_cam(random, images(), grad_cam(model, images()).classes, layer="4").maps
    assert found.layer == "4"
    np.testing.assert_allclose(found.grad_cam_maps[1], expected, rtol=1e-4, atol=1e-6)


def test_the_model_stays_and_a_seed_fixes_the_result():
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second, other = (randomisation_check(model, images(), Stages(model), steps=2, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.grad_cam, second.grad_cam)
    assert not np.array_equal(first.guided, other.guided)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_norm_of_a_random_network_is_that_of_its_own_activations():
    """With the statistics of before the signal of the random network dies out, and no map is left to compare."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()
    estimate_batch_norm(model, images())
    for layer in (model[1], model[4]):
        layer.running_mean += 30.0  # as if the activations lay elsewhere, where the weights of before had them
        layer.bias.data += 0.1
    found = randomisation_check(model, images(), Stages(model), steps=3)
    assert not found.flat[-1].all()
    assert model[1].running_mean.mean() > 20


def test_flat_maps_are_named():
    model = net()
    nn.init.zeros_(model[4].weight)  # no spread, so that it stays at 0
    nn.init.zeros_(model[4].bias)
    found = randomisation_check(model, images(), Stages(model), steps=2)
    assert found.flat.all()
    assert not found.grad_cam.any()


def test_a_network_without_relu_has_no_guided_backpropagation():
    model = net(nn.GELU)
    found = randomisation_check(model, images(), Stages(model), steps=2)
    assert found.guided is None
    assert found.guided_maps is None
    assert found.grad_cam.shape == (2, 6)


def test_a_layer_that_is_not_there_is_named():
    model = net()
    with pytest.raises(UserError, match="unknown target layer 'layer5'"):
        randomisation_check(model, images(), Stages(model), layer="layer5")
