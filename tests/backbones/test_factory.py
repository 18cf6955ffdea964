"""Any classification model of torchvision gets a new head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import images, without_storage
from torch import nn
from torchvision.models import get_model

from tl_lightning.backbones import Stages, create_backbone, head_name, list_backbones
from tl_lightning.errors import UserError

HEADS = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_lite0": "classifier",
    "googlenet": "fc",
    "inception_v3": "fc",
    "maxvit_t": "classifier.5",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
    "resnet18": "fc",
    "squeezenet1_1": "classifier.1",
    "swin_v2_t": "head",
    "vgg11_bn": "classifier.6",
    "vit_b_32": "heads.head",
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_replaced(name: str) -> None:
    model = without_storage(name)
    assert head_name(model) == HEADS[name]
    head = model.get_submodule(HEADS[name])
    assert [p.shape[0] for p in head.parameters()] in ([3, 3], [3])


@pytest.mark.parametrize("name", HEADS)
def test_dropout_feeds_the_head(name: str) -> None:
    model = without_storage(name, dropout=0.25)
    stages = Stages(model)
    head = [k for k, stage in stages.module_stage().items() if stage == len(stages) - 1]
    rates = [m.p for k, m in model.named_modules() if k in head and isinstance(m, nn.Dropout)]
    assert rates == [0.25]
    assert next(p.shape[0] for k, p in model.named_parameters() if stages.parameter_stage()[k] == len(stages) - 1) == 3
    assert isinstance(model.get_submodule(head_name(model)), nn.Sequential | nn.Linear | nn.Conv2d)


def test_dropout_is_wrapped_around_a_head_that_has_none() -> None:
    model = create_backbone("resnet18", num_classes=3, dropout=0.5)
    assert isinstance(model.fc, nn.Sequential)
    assert head_name(model) == "fc"
    assert Stages(model).names[-1] == "fc"
    assert isinstance(create_backbone("resnet18", num_classes=3, dropout=0.0).fc, nn.Linear)


def test_the_seed_fixes_the_head_and_another_seed_another() -> None:
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(create_backbone("efficientnet_lite0", "IMAGENET1K_V1", 3).classifier[1].weight)
    torch.manual_seed(0)
    scratch = create_backbone("efficientnet_lite0", "none", 3)
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], scratch.classifier[1].weight), "the arms of a comparison share the head"
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("classes", [3, 1000])
def test_published_weights_fill_all_but_the_head(classes: int) -> None:
    reference = get_model("efficientnet_lite0", weights="DEFAULT").state_dict()
    own = create_backbone("efficientnet_lite0", "DEFAULT", classes).state_dict()
    differing = [k for k in own if not torch.equal(own[k], reference[k])]
    assert differing == ["classifier.1.weight", "classifier.1.bias"]


def test_grey_images_give_what_they_give_as_rgb(tmp_path: Path) -> None:
    for name in ("efficientnet_lite0", "squeezenet1_1"):
        torch.manual_seed(0)
        torch.save(create_backbone(name).state_dict(), tmp_path / "rgb.pt")
        models = []
        for channels in (1, 3):
            torch.manual_seed(1)
            models.append(create_backbone(name, str(tmp_path / "rgb.pt"), 3, in_channels=channels).eval())
        grey = images(name)[:, :1]
        torch.testing.assert_close(models[0](grey), models[1](grey.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


def test_the_inception_family_maps_its_input_unless_it_is_grey() -> None:
    assert create_backbone("googlenet").transform_input
    model = create_backbone("googlenet", in_channels=1, num_classes=3)
    assert not model.transform_input
    assert model.eval()(torch.rand(2, 1, 64, 64)).shape == (2, 3)


def test_auxiliary_heads_are_there_when_asked_for() -> None:
    assert create_backbone("googlenet").aux1 is None
    model = create_backbone("googlenet", num_classes=3, aux_logits=True).train()
    assert [tuple(out.shape) for out in model(torch.rand(2, 3, 64, 64))] == [(2, 3)] * 3
    with pytest.raises(UserError, match="resnet18 has no auxiliary heads"):
        create_backbone("resnet18", aux_logits=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), not -0.1"),
        ({"in_channels": 4}, "in_channels must be 1"),
        ({"weights": "IMAGENET1K"}, r"unknown weights of resnet18 'IMAGENET1K': did you mean IMAGENET1K_V1"),
        ({"weights": "runs/best.ckpt"}, "no weights file runs/best.ckpt"),
    ],
)
def test_wrong_arguments_get_one_clear_line(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        create_backbone("resnet18", **arguments)
    assert "\n" not in str(caught.value)


def test_an_unknown_backbone_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown backbone 'resnet19': did you mean resnet18"):
        create_backbone("resnet19")
    with pytest.raises(UserError, match="unknown backbone 'efficientnet-lite0': did you mean efficientnet_lite0"):
        create_backbone("efficientnet-lite0")


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_other_name_is_refused(name: str) -> None:
    if name not in list_backbones():
        with pytest.raises(UserError, match="unknown backbone"):
            create_backbone(name)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_other_weights_are_refused(weights: str) -> None:
    if weights not in ("none", "IMAGENET1K_V1", "DEFAULT"):
        with pytest.raises(UserError, match="weights"):
            create_backbone("squeezenet1_1", weights)


def test_weights_that_cannot_be_downloaded_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(
        UserError, match=r"could not be downloaded .*fetch https://.*resnet18.* efficientnet_lite0"
    ) as e:
        create_backbone("resnet18", "IMAGENET1K_V1")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v3_small", "squeezenet1_1"])
def test_a_new_head_starts_near_the_loss_of_a_guess(name):
    torch.manual_seed(0)
    model = create_backbone(name, "none", num_classes=2).eval()
    loss = nn.functional.cross_entropy(model(torch.rand(8, 3, 64, 64)), torch.arange(8) % 2)
    assert abs(loss.item() - 0.693) < 0.1


def test_the_head_does_not_depend_on_the_weights(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(get_model("resnet18", num_classes=7).state_dict(), path)
    heads = []
    for weights in ("none", str(path)):
        torch.manual_seed(3)
        heads.append(create_backbone("resnet18", weights, num_classes=4).fc.weight)
    assert torch.equal(*heads)
