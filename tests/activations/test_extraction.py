"""Activations are those of the prefix; its fingerprint follows everything that decides them."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from cached_fits import backbone
from torch import nn

from tl_lightning.backbones import Stages
from tl_lightning.errors import UserError
from tl_lightning.features import (
    compute_activations,
    global_average,
    prefix_fingerprint,
    record,
)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_activations_are_those_of_the_prefix(name):
    model = backbone(name).train()
    before = copy.deepcopy(model.state_dict())
    stages = Stages(model)
    prefix, suffix = stages.split(stages.boundary_before("head"))
    x = torch.rand(40, 3, 64, 64)
    activations = compute_activations(prefix, x)
    assert not activations.requires_grad
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    model.eval()
    suffix.eval()
    with torch.no_grad():
        assert torch.allclose(suffix(activations), model(x), atol=1e-4)
    assert torch.equal(activations, compute_activations(prefix, iter(x.split(32))))


def test_normalisation_comes_first():
    prefix = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    x = torch.rand(4, 3, 2, 2)
    with torch.no_grad():
        expected = prefix((x - 0.5) / 0.2)
    assert torch.allclose(compute_activations(prefix, x, normalise=lambda t: (t - 0.5) / 0.2), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_record_gives_every_boundary_of_one_pass(name):
    model = backbone(name).eval()
    stages = Stages(model, "boundary")
    chosen = stages.boundaries[:: max(1, len(stages.boundaries) // 8)]
    x = torch.rand(3, 3, 64, 64)
    maps = record(model, chosen, x)
    averages = record(model, [b.name for b in chosen], x, reduce=global_average)
    for boundary in chosen:
        with torch.no_grad():
            expected = stages.split(boundary)[0](x.clone())
        scale = expected.abs().max()
        assert (maps[boundary.name] - expected).abs().max() < 1e-5 * scale
        assert (averages[boundary.name] - global_average(expected)).abs().max() < 1e-5 * scale
        assert averages[boundary.name].ndim == 2


def test_record_names_near_boundaries():
    with pytest.raises(UserError, match="did you mean"):
        record(backbone("resnet18"), ["layer3.0.ad"], torch.rand(1, 3, 32, 32))


def test_fingerprint_follows_weights_buffers_and_code():
    def fingerprint(change=lambda model: None, stage="layer2"):
        model = backbone("resnet18")
        change(model)
        stages = Stages(model)
        return prefix_fingerprint(stages.split(stages.boundary_before(stage))[0])

    same = fingerprint()
    assert fingerprint() == same
    assert fingerprint(lambda m: m.train()) == fingerprint(lambda m: m.eval()) == same
    assert fingerprint(lambda m: m.fc[1].weight.data.zero_()) == same
    changes = [
        lambda m: m.conv1.weight.data[0, 0, 0, 0].add_(1e-6),
        lambda m: m.bn1.running_mean[0].add_(1e-6),
        lambda m: setattr(m.layer1[0].conv1, "stride", (2, 2)),
        lambda m: setattr(m.bn1, "eps", 1e-3),
    ]
    assert len({fingerprint(change) for change in changes} | {same, fingerprint(stage="layer3")}) == 6


def test_fingerprint_is_the_same_in_another_process():
    script = """
    import torch
    from torch import nn
    from tl_lightning.activations.extraction import prefix_fingerprint
    torch.manual_seed(0)
    print(prefix_fingerprint(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish())))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    torch.manual_seed(0)
    here = prefix_fingerprint(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish()))
    assert printed.strip() == here
