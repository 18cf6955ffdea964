from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from tl_lightning.analysis import grad_cam, guided_backprop
from tl_lightning.analysis.target_layer import find_target_layer
from tl_lightning.errors import UserError


def model(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": True, **options}
    return torchvision.models.get_model(name, weights=None, num_classes=5, **options).eval()


def images(count: int = 3, size: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


class Tiny(nn.Module):
    """Two filters, then a ReLU in place, the mean of each map, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 2, bias=False)
        self.conv.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        self.head.weight.data = torch.tensor([[2.0, -1.0], [0.0, 3.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


def test_map_by_hand():
    """The layer is the convolution and a ReLU follows in place: the maps must be those before the ReLU."""
    x = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]])
    # Class 0: d score / d conv = 2/4 where conv0 > 0 (three pixels), -1/4 where conv1 > 0 (one pixel).
    weights = 3 * (2 / 4) / 4, 1 * (-1 / 4) / 4
    expected = (weights[0] * x[0, 0] - weights[1] * x[0, 0]).clamp(min=0)
    result = grad_cam(Tiny(), x, [0], layer="conv")
    torch.testing.assert_close(torch.from_numpy(result.maps[0]), expected)
    scores = torch.tensor([2 * 8 / 4 - 2 / 4, 3 * 2 / 4])
    np.testing.assert_allclose(result.probabilities[0], scores.softmax(0), rtol=1e-5)


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer4"), ("mobilenet_v2", "features.17")])
def test_maps_are_those_of_the_package(name, layer):
    net, x = model(name), images()
    net.get_submodule("fc" if name == "resnet18" else "classifier.1").weight.data.mul_(100)
    ours = grad_cam(net, x, [0, 1, 2], layer=layer)
    theirs_model = copy.deepcopy(net)
    cam = GradCAM(theirs_model, [theirs_model.get_submodule(ours.layer)])
    theirs = cam(x, [ClassifierOutputTarget(c) for c in (0, 1, 2)])
    for a, b in zip(ours.maps, theirs, strict=True):  # the package shifts and scales each map, by max + 1e-7
        np.testing.assert_allclose((a - a.min()) / (a.max() - a.min() + 1e-12), b, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("resnet18", "layer4", 64),
        ("resnet18", "layer3", 32),
        ("densenet121", "features", 64),
        ("efficientnet_b0", "features", 64),
        ("squeezenet1_1", "features", 64),
        ("shufflenet_v2_x0_5", "conv5", 64),
        ("googlenet", "inception5b", 64),
        ("inception_v3", "Mixed_6e", 96),
        ("regnet_y_400mf", "trunk_output", 64),
        ("vgg11", "features.18", 32),
        ("swin_t", "norm", 64),
        ("vit_b_32", "encoder.layers.encoder_layer_11.ln_1", 64),
    ],
)
def test_default_layer_is_the_last_map_that_all_the_scores_depend_on(name, layer, size):
    net = model(name, **({"image_size": 64} if name.startswith("vit") else {}))
    if name.startswith("vit"):
        nn.init.normal_(net.heads.head.weight)  # torchvision starts it at zero, where every map is zero
    result = grad_cam(net, images(1, size).expand(5, -1, -1, -1), range(5))
    assert result.layer == layer
    assert result.maps.shape == (5, size, size)
    assert (result.maps >= 0).all()
    assert result.maps.max() > 0


@pytest.mark.parametrize(
    ("name", "patches", "tokens"),
    [("vit_b_32", "conv_proj", "encoder.dropout"), ("swin_t", "features.0.0", "features.0.1")],
)
def test_tokens_of_transformers_are_laid_out_as_the_patches_they_come_from(name, patches, tokens):
    net = model(name, **({"image_size": 96} if name.startswith("vit") else {}))
    if name.startswith("vit"):
        net.encoder.pos_embedding.data.zero_()
    seen, handles = {}, []
    for layer in (patches, tokens):
        target = find_target_layer(net, images(2, 96), layer=layer)
        handles.append(
            target.module.register_forward_hook(lambda _, __, out, t=target: seen.update({t.name: t.to_maps(out)}))
        )
    with torch.no_grad():
        net(images(2, 96))
    assert seen[patches].shape[2:] in ((3, 3), (24, 24))
    torch.testing.assert_close(seen[tokens], seen[patches])


class Wrapper(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x * 2 - 1)


def test_backbone_inside_a_module():
    net, x = model("mobilenet_v2"), images()
    inside = grad_cam(Wrapper(net), x, attribute="backbone")
    assert inside.layer == "features"
    np.testing.assert_allclose(inside.maps, grad_cam(net, x * 2 - 1).maps, rtol=1e-4, atol=1e-7)


def test_backbone_that_was_compiled_and_has_run_before():
    """Hooks that are added after compilation do not fire in compiled code."""
    net, x = small().requires_grad_(False), images(size=16)
    wrapped = Wrapper(torch.compile(net, backend="eager"))
    wrapped(x)
    compiled = grad_cam(wrapped, x, attribute="backbone")
    assert compiled.layer == "0"
    np.testing.assert_allclose(compiled.maps, grad_cam(net, x * 2 - 1).maps, rtol=1e-4, atol=1e-7)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ).eval()


def test_frozen_half_precision_and_inference_mode():
    net, x = model("resnet18"), images()
    expected = grad_cam(net, x, [0, 1, 2])
    frozen = copy.deepcopy(net).requires_grad_(False)
    with torch.inference_mode():
        seen = grad_cam(frozen, images(), [0, 1, 2], batch_size=2)
    np.testing.assert_allclose(seen.maps, expected.maps, rtol=1e-4, atol=1e-7)
    half = grad_cam(copy.deepcopy(net).bfloat16(), x, [0, 1, 2])
    assert np.corrcoef(half.maps.ravel(), expected.maps.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_guided_backprop_is_that_of_the_package_where_that_applies(name):
    net, x = model(name), images(2)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    ours = guided_backprop(net, x, [1, 3])
    theirs = GuidedBackpropReLUModel(copy.deepcopy(net))
    for i, c in enumerate((1, 3)):
        expected = theirs(x[i : i + 1].clone(), c).transpose(2, 0, 1)
        np.testing.assert_allclose(ours[i], expected, rtol=1e-3, atol=1e-6 * np.abs(expected).max())


class Rectified(nn.Module):
    """Scores w * relu(x) + v * relu(-x) of each of 4 pixels: the guided gradient keeps positive weights only."""

    def __init__(self, relu: Any) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, down = self.relu(x + 0), self.relu(-x)
        weights = torch.tensor([2.0, -3.0, 0.0, 5.0]).view(1, 1, 2, 2)
        return (weights * up - 7 * down).sum((2, 3))


@pytest.mark.parametrize(
    "relu",
    [F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, nn.ReLU(), nn.ReLU6(inplace=True)],
    ids=lambda f: getattr(f, "__qualname__", repr(f)),
)
def test_guided_backprop_by_hand(relu):
    x = torch.tensor([[[[1.0, 2.0], [3.0, -4.0]]]])
    np.testing.assert_array_equal(guided_backprop(Rectified(relu), x, [0])[0, 0], [[2, 0], [0, 0]])
    plain = x.clone().requires_grad_(True)
    Rectified(relu)(plain).sum().backward()
    np.testing.assert_array_equal(plain.grad[0, 0], [[2, -3], [0, 7]])


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "googlenet"])
def test_guided_backprop_knows_functional_relus_and_relu6(name):
    net, x = model(name), images(1)
    leaf = x.clone().requires_grad_(True)
    plain = torch.autograd.grad(net(leaf)[0, 2], leaf)[0].numpy()
    assert np.corrcoef(guided_backprop(net, x, [2]).ravel(), plain.ravel())[0, 1] < 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grad_cam(model("resnet18"), images(), layer="layer5"), "did you mean layer4"),
        (lambda: grad_cam(model("resnet18"), images(), layer="fc"), r"'fc' gives \[3, 5\], not maps"),
        (lambda: grad_cam(model("resnet18"), images(), attribute="backbon"), "unknown attribute 'backbon'"),
        (
            lambda: grad_cam(model("googlenet"), images(), layer="aux1.conv"),
            "do not depend on target layer 'aux1.conv'",
        ),
        (lambda: grad_cam(model("resnet18"), images(size=2)), "2 x 2: use larger images"),
        (lambda: grad_cam(model("resnet18"), images(), [0, 1, 5]), "0 .. 4"),
        (lambda: grad_cam(model("resnet18"), images(), [0, 1]), "each of the 3 rows"),
        (lambda: grad_cam(nn.Conv2d(3, 3, 1), images()), "no layer of Conv2d"),
        (lambda: grad_cam(nn.Sequential(nn.Conv2d(3, 3, 1)), images(), layer="0"), "class scores"),
        (lambda: grad_cam(model("resnet18"), images()[0]), r"images must be floats"),
        (lambda: guided_backprop(model("efficientnet_b0"), images()), "EfficientNet has none"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
