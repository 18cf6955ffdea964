from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from tl_lightning.analysis import minibatch_cka, stage_activations, stage_cka
from tl_lightning.analysis.stage_similarity import small_maps
from tl_lightning.backbones import Stages


def resnet(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return get_model("resnet18", weights=None, num_classes=3).eval()


def images() -> torch.Tensor:
    return torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pair():
    first, second = resnet(0), resnet(1)
    second.load_state_dict(
        {**second.state_dict(), **{k: v for k, v in first.state_dict().items() if "layer4" not in k}}
    )
    return first, second


def test_activations_end_where_the_stages_end(pair):
    model = pair[0]
    found = stage_activations(model, images(), Stages(model), normalise=lambda x: 2 * x)
    assert list(found) == list(Stages(model).names[:-1])
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(2 * images()))))
        layer1 = model.layer1(x)
    torch.testing.assert_close(found["layer1"], small_maps(layer1), rtol=1e-3, atol=1e-4)
    assert found["layer1"].shape == (12, 64, 8, 8)
    assert found["layer4"].shape[:2] == (12, 512)


def test_networks_that_share_their_lower_stages_are_the_same_there_and_not_above(pair):
    first, second = (stage_activations(model, images(), Stages(model)) for model in pair)
    found = stage_cka(first, second)
    assert found["layer1"] == pytest.approx(1)
    assert found["layer3"] == pytest.approx(1)
    assert found["layer4"] < 0.999
    assert found["layer4"] == minibatch_cka(first["layer4"], second["layer4"])


def test_small_maps_keep_means_and_leave_other_activations_alone():
    maps = torch.rand(2, 3, 16, 16)
    assert small_maps(maps).shape == (2, 3, 8, 8)
    np.testing.assert_allclose(small_maps(maps).mean((2, 3)), maps.mean((2, 3)), rtol=1e-5)
    for values in (torch.rand(2, 3, 5, 5), torch.rand(2, 7), torch.rand(2, 5, 7)):
        assert torch.equal(small_maps(values), values)
