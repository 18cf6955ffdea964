"""A model is its two halves, at every boundary, in eval mode and in train mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import SMALL, images
from torch import nn
from torch.nn import functional as F

from tl_lightning.backbones import Stages, create_backbone
from tl_lightning.errors import UserError

EVERYWHERE = ("resnet18", "squeezenet1_1")


def outputs(module: Any, x: torch.Tensor, training: bool) -> Any:
    module.train(training)
    torch.manual_seed(3)
    with torch.no_grad():
        return module(x)


class Joined(nn.Module):
    """The two halves, one after the other."""

    def __init__(self, halves: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.prefix, self.suffix = halves

    def forward(self, x: torch.Tensor) -> Any:
        return self.suffix(self.prefix(x))


@pytest.mark.parametrize("name", SMALL)
def test_the_halves_are_the_model(name: str) -> None:
    torch.manual_seed(0)
    model = create_backbone(name, num_classes=3, dropout=0.3)
    stages, x = Stages(model), images(name)
    chosen = stages.boundaries if name in EVERYWHERE else stages.boundaries[1 :: len(stages.boundaries) // 3]
    for training in (False, True):
        expected = outputs(model, x, training)
        for boundary in chosen:
            assert torch.equal(outputs(Joined(stages.split(boundary)), x, training), expected), boundary


@pytest.mark.parametrize("name", SMALL)
def test_stochastic_depth_and_dropout_stay_active_in_the_halves(name: str) -> None:
    torch.manual_seed(0)
    model = create_backbone(name, num_classes=3, dropout=0.5).train()
    stages = Stages(model)
    _, suffix = stages.split(stages.boundary_before(-1))
    prefix, _ = stages.split(stages.boundary_before(-1))
    features = torch.rand_like(prefix.eval()(images(name)))
    first, second = suffix.train()(features), suffix(features)
    assert not torch.equal(first, second)
    assert torch.equal(suffix.eval()(features), suffix(features))


@pytest.mark.parametrize(
    ("name", "boundary"),
    [
        ("mobilenet_v3_small", "features.0.1"),
        ("efficientnet_lite0", "flatten"),
        ("resnet18", "bn1"),
        ("alexnet", "avgpool"),
    ],
)
def test_a_suffix_leaves_its_input_as_it_is(name: str, boundary: str) -> None:
    model = create_backbone(name, num_classes=3).train()
    prefix, suffix = Stages(model).split(boundary)
    activation = prefix(images(name)).detach()
    kept = activation.clone()
    suffix(activation)
    assert torch.equal(activation, kept)


def test_the_halves_share_their_tensors_with_the_model() -> None:
    model = create_backbone("swin_t", num_classes=3)
    stages = Stages(model)
    prefix, suffix = stages.split(stages.boundary_before("features.3"))
    below, above = ({id(p) for p in half.parameters()} for half in (prefix, suffix))
    assert below | above == {id(p) for p in model.parameters()}
    assert not below & above
    stage = stages.parameter_stage()
    assert below == {id(p) for key, p in model.named_parameters() if stage[key] < stages.index("features.3")}
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    assert not suffix.eval()(prefix.eval()(images("swin_t"))).any()


def test_the_prefix_of_a_stage_holds_the_stages_before_it_and_nothing_else() -> None:
    model = create_backbone("resnet18", num_classes=3)
    for granularity in ("module", "boundary"):
        stages = Stages(model, granularity)  # type: ignore[arg-type]
        where = {id(p): stages.parameter_stage()[key] for key, p in model.named_parameters()}
        for number in range(1, len(stages)):
            prefix, suffix = stages.split(stages.boundary_before(number))
            assert {where[id(p)] for p in prefix.parameters()} == set(range(number))
            assert {where[id(p)] for p in suffix.parameters()} == set(range(number, len(stages)))


def test_auxiliary_heads_train_with_the_suffix_that_holds_them() -> None:
    torch.manual_seed(0)
    model = create_backbone("googlenet", num_classes=3, aux_logits=True)
    stages, x = Stages(model), images("googlenet")
    expected = outputs(model, x, training=True)
    got = outputs(Joined(stages.split("inception3b.cat")), x, training=True)
    assert type(got) is type(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_behind_an_auxiliary_head_the_suffix_returns_the_main_output() -> None:
    torch.manual_seed(0)
    model = create_backbone("googlenet", num_classes=3, aux_logits=True, dropout=0.0)
    for auxiliary in (model.aux1, model.aux2):
        auxiliary.dropout.p = 0.0
    stages, x = Stages(model), images("googlenet")
    for boundary in ("inception4c.cat", "inception5a.cat", "flatten"):
        joined = Joined(stages.split(boundary))
        assert torch.equal(outputs(joined, x, training=False), outputs(model, x, training=False))
        assert torch.equal(outputs(joined, x, training=True), outputs(model, x, training=True).logits)


class Functional(nn.Module):
    """Asks for its mode in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.dropout(self.body(x), 0.5, training=self.training))
        return self.head(F.dropout(self.middle(x), 0.5, self.training))


def test_functional_dropout_follows_the_mode_of_the_halves() -> None:
    torch.manual_seed(0)
    model, x = Functional(), torch.rand(4, 8)
    stages = Stages(model, "boundary")
    for boundary in stages.boundaries:
        joined = Joined(stages.split(boundary))
        for training in (True, False, True):
            assert torch.equal(outputs(joined, x, training), outputs(model, x, training)), boundary


def test_the_halves_begin_in_the_mode_of_the_model() -> None:
    for training in (True, False):
        model = create_backbone("resnet18").train(training)
        assert [half.training for half in Stages(model).split("layer2.1.add")] == [training] * 2


def test_an_unknown_boundary_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown boundary 'layer2.1.ad': did you mean layer2.1.add"):
        Stages(create_backbone("resnet18")).split("layer2.1.ad")


def test_gradients_pass_the_boundary() -> None:
    model = create_backbone("mobilenet_v3_small", num_classes=3)
    stages = Stages(model)
    prefix, suffix = stages.split(stages.boundary_before("features.4"))
    suffix.train()(prefix.train()(images("mobilenet_v3_small"))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
