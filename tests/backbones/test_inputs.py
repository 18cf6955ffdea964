"""The input that a backbone expects, and the sizes it can take."""

from __future__ import annotations

import pytest
import torch
import torchvision
from models import without_storage

from tl_lightning.backbones import check_image_size, input_spec, list_backbones
from tl_lightning.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_all_classification_models_of_torchvision_are_listed() -> None:
    names = list_backbones()
    assert set(torchvision.models.list_models(torchvision.models)) < set(names)
    assert {"resnet18", "vit_h_14", "efficientnet_lite2"} <= set(names)
    assert not {"fcn_resnet50", "raft_small", "quantized_resnet18"} & set(names)
    assert names == sorted(names)
    assert len(names) >= 83


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet18", "none", (*IMAGENET, 224, 1)),
        ("resnet18", "IMAGENET1K_V1", (*IMAGENET, 224, 1)),
        ("efficientnet_b1", "DEFAULT", (*IMAGENET, 240, 1)),
        ("vit_b_16", "none", (*IMAGENET, 224, 224)),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", (*IMAGENET, 384, 384)),
        ("vit_h_14", "none", (*IMAGENET, 224, 224)),
        ("inception_v3", "somewhere/own.ckpt", (*IMAGENET, 299, 75)),
        ("efficientnet_lite1", "none", ((127 / 255,) * 3, (128 / 255,) * 3, 240, 1)),
    ],
)
def test_the_expected_input(name: str, weights: str, expected: tuple[object, ...]) -> None:
    spec = input_spec(name, weights)
    assert (spec.mean, spec.std, spec.image_size, spec.min_size) == expected


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "densenet121", "googlenet", "swin_t", "vit_b_32"])
def test_the_smallest_size_is_the_smallest_that_the_model_can_take(name: str) -> None:
    check_smallest(name)


def check_smallest(name: str) -> None:
    model, smallest = without_storage(name).to("meta").eval(), input_spec(name).min_size
    check_image_size(name, smallest)
    assert model(torch.empty(1, 3, smallest, smallest, device="meta")).shape == (1, 3)
    if name != "maxvit_t":  # which takes 223 pixels as well, by rounding up, and should not be asked to
        with pytest.raises((RuntimeError, AssertionError, ValueError)):
            model(torch.empty(1, 3, smallest - 1, smallest - 1, device="meta"))
    if smallest > 1:
        with pytest.raises(
            UserError, match=rf"{name} (needs|takes) images of .*{smallest} pixels.*, not {smallest - 1}"
        ):
            check_image_size(name, smallest - 1)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="vit_b_16 takes images of 224 pixels only, not 96"):
        check_image_size("vit_b_16", 96)
    check_image_size("vit_b_16", 384, "IMAGENET1K_SWAG_E2E_V1")
    with pytest.raises(UserError, match="at least 75 pixels, not 64"):
        check_image_size("inception_v3", 64)
    check_image_size("inception_v3", 96)
    with pytest.raises(UserError, match="at least 299 pixels, not 96"):
        check_image_size("inception_v3", 96, aux_logits=True)
    with pytest.raises(UserError, match="at least 1 pixels, not 0"):
        check_image_size("resnet18", 0)


def test_an_unknown_backbone_has_no_input() -> None:
    with pytest.raises(UserError, match="did you mean resnet18"):
        input_spec("resnet_18")
