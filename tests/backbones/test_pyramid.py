"""Feature maps of any backbone: where they lie, what they hold, and that the backbone stays what it was."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.models import get_model, mobilenet_v2, resnet18, resnet50
from torchvision.models._utils import IntermediateLayerGetter

from tl_lightning.backbones import Stages, create_backbone
from tl_lightning.backbones.dilation import limit_stride
from tl_lightning.backbones.pyramid import FeatureBackbone
from tl_lightning.errors import UserError

FOUR = (4, 8, 16, 32)


def images(size: int = 128, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("mobilenet_v3_small", FOUR),
        ("efficientnet_lite0", FOUR),
        ("resnet18", FOUR),
        ("shufflenet_v2_x0_5", FOUR),
        ("densenet121", FOUR),
        ("regnet_y_400mf", FOUR),
        ("squeezenet1_1", (4, 8, 16)),
        ("vgg11", FOUR),
        ("googlenet", FOUR),
        ("convnext_tiny", FOUR),
        ("swin_t", FOUR),
    ],
)
def test_maps_have_the_stride_and_the_channels_that_they_state(name, strides):
    backbone = FeatureBackbone(create_backbone(name), FOUR).eval()
    assert backbone.strides == strides
    with torch.no_grad():
        maps = backbone.pyramid(images())
    for stride, channels in zip(backbone.strides, backbone.channels, strict=True):
        height, width = maps[stride].shape[-2:]
        assert maps[stride].shape[1] == channels
        assert height == width
        assert 128 // stride - 1 <= height <= 128 // stride  # SqueezeNet does not pad


def test_maps_of_resnet_are_the_outputs_of_its_layers():
    model = resnet18().eval()
    expected = IntermediateLayerGetter(model, {f"layer{k}": f"layer{k}" for k in (1, 2, 3, 4)})(images())
    maps = FeatureBackbone(model, FOUR).eval().pyramid(images())
    for ours, theirs in zip(maps.values(), expected.values(), strict=True):
        assert torch.equal(ours, theirs)


def test_maps_are_outputs_of_blocks_not_widened_ones_inside_of_them():
    assert FeatureBackbone(mobilenet_v2(), FOUR).channels == (24, 32, 96, 1280)


def test_maps_of_swin_have_their_channels_in_front():
    model = get_model("swin_t").eval()
    maps = FeatureBackbone(model, (4,)).eval().pyramid(images())
    expected = nn.Sequential(*list(model.features)[:2])(images()).permute(0, 3, 1, 2)
    assert torch.equal(maps[4], expected)


def test_layers_and_their_names_are_those_of_the_model_without_the_classifier():
    model = create_backbone("efficientnet_lite0")
    backbone = FeatureBackbone(model)
    classifier = {name for name, _ in model.named_parameters() if name.startswith("classifier")}
    assert classifier
    assert {n: id(p) for n, p in backbone.named_parameters()} == {
        n: id(p) for n, p in model.named_parameters() if n not in classifier
    }
    assert backbone.load_state_dict({k: v for k, v in model.state_dict().items() if k not in classifier})


def test_deeper_layers_than_wanted_are_left_out():
    backbone = FeatureBackbone(resnet18(), (8,))
    assert backbone.strides == (8,)
    assert not any(name.startswith(("layer3", "layer4", "fc")) for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "densenet121", "swin_t"])
def test_stages_are_those_of_the_whole_model_without_its_head(name):
    model = create_backbone(name)
    backbone = FeatureBackbone(model)
    stages, whole = Stages(backbone), Stages(model)
    assert stages.names == whole.names[: len(stages)]
    assert len(whole.names) - len(stages) in (1, 2)  # MobileNetV3's classifier has two layers
    assert stages.parameter_stage().keys() == {name for name, _ in backbone.named_parameters()}
    assert {b.name for b in stages.boundaries} <= {b.name for b in whole.boundaries}
    assert len(Stages(backbone, "boundary")) >= len(stages)
    prefix, suffix = stages.split(stages.boundary_before(len(stages) // 2))
    backbone.eval()
    prefix.eval(), suffix.eval()
    assert torch.equal(suffix(prefix(images())), backbone(images()))


def test_train_mode_is_that_of_the_model():
    model = create_backbone("resnet18")
    backbone = FeatureBackbone(model)
    twin = copy.deepcopy(model)
    expected = IntermediateLayerGetter(twin.train(), {"layer4": "out"})(images())["out"]
    assert torch.equal(backbone.train()(images()), expected)
    assert torch.equal(backbone.bn1.running_mean, twin.bn1.running_mean)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "swin_t"])
def test_copies_and_pickles_share_nothing_and_compute_the_same(name):
    backbone = FeatureBackbone(create_backbone(name)).eval()
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        own = {t.data_ptr() for t in backbone.state_dict().values()}
        assert not own & {t.data_ptr() for t in twin.state_dict().values()}
        assert torch.equal(twin(images()), backbone(images()))
        with torch.no_grad():
            next(twin.parameters()).add_(1)
        assert not torch.equal(twin(images()), backbone(images()))
        assert Stages(twin).names == Stages(backbone).names


def test_building_changes_neither_the_model_nor_the_random_state():
    model = create_backbone("mobilenet_v3_small").train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    FeatureBackbone(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_keeps_tokens_is_refused():
    with pytest.raises(UserError, match=r"VisionTransformer keeps tokens.*swin"):
        FeatureBackbone(create_backbone("vit_b_16"))


def test_strides_that_the_model_lacks_are_named():
    with pytest.raises(UserError, match=r"SqueezeNet has no feature maps at strides 32: it has them at 2, 4, 8, 16"):
        FeatureBackbone(create_backbone("squeezenet1_1"), (32,))


def test_limited_stride_is_torchvisions_dilation():
    ours, theirs = resnet50(), resnet50(replace_stride_with_dilation=[False, True, True])
    theirs.load_state_dict(ours.state_dict())
    limit_stride(ours, 8)
    ours, theirs = FeatureBackbone(ours.eval(), (8,)), IntermediateLayerGetter(theirs, {"layer4": "out"})
    with torch.no_grad():
        assert torch.equal(ours.eval()(images(64)), theirs.eval()(images(64))["out"])


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_limited_stride_halves_no_map_below_it(name):
    model = create_backbone(name)
    limit_stride(model, 8)
    backbone = FeatureBackbone(model).eval()
    assert backbone.strides[-1] == 8
    assert backbone(images(96)).shape[-2:] == (12, 12)


def test_a_stride_within_the_limit_changes_nothing():
    model = create_backbone("efficientnet_lite0").eval()
    expected = model(images())
    limit_stride(model, 32)
    assert torch.equal(model(images()), expected)


def test_pooling_cannot_be_dilated_and_the_model_stays_as_it_was():
    model = create_backbone("densenet121").eval()
    expected = model(images(64))
    with pytest.raises(UserError, match=r"DenseNet cannot have output_stride 8: features.transition\d.pool"):
        limit_stride(model, 8)
    assert torch.equal(model(images(64)), expected)
