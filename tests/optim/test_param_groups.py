from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tl_lightning.errors import UserError
from tl_lightning.optim import (
    expand_schedulers,
    match_state_by_name,
    parameter_names,
    split_groups_by_stage,
    stage_param_groups,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.body = nn.Conv2d(4, 4, 1, bias=False)
        self.fc = nn.Linear(4, 2)


class Map:
    """Stages of ``Net``, written by hand."""

    names = ("stem", "body", "fc")

    def __init__(self, **changes: int) -> None:
        self.stage = {"stem.0.weight": 0, "stem.0.bias": 0, "stem.1.weight": 0, "stem.1.bias": 0, "body.weight": 1}
        self.stage |= {"fc.weight": 2, "fc.bias": 2, **changes}

    def parameter_stage(self) -> dict[str, int]:
        return self.stage


def summary(groups: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(g["name"], g["stage"], g["weight_decay"], g["param_names"]) for g in groups]


def test_groups_are_stage_by_decay_in_order_of_depth() -> None:
    model = Net()
    groups = stage_param_groups(model, Map(), lr=0.1, weight_decay=0.3, prefix="net.")
    assert summary(groups) == [
        ("stem/decay", 0, 0.3, ["net.stem.0.weight"]),
        ("stem/no_decay", 0, 0.0, ["net.stem.0.bias", "net.stem.1.weight", "net.stem.1.bias"]),
        ("body/decay", 1, 0.3, ["net.body.weight"]),
        ("fc/decay", 2, 0.3, ["net.fc.weight"]),
        ("fc/no_decay", 2, 0.0, ["net.fc.bias"]),
    ]
    assert all(g["lr"] == 0.1 and g["stage_lr_scale"] == 1.0 for g in groups)
    assert groups[0]["params"][0] is model.stem[0].weight


def test_stages_of_another_model_are_an_error() -> None:
    with pytest.raises(UserError, match=r"the model has no parameter extra\.weight"):
        stage_param_groups(Net(), Map(**{"extra.weight": 1}), lr=0.1, weight_decay=0.0)
    stages = Map()
    del stages.stage["body.weight"]
    with pytest.raises(UserError, match=r"no stage holds body\.weight"):
        stage_param_groups(Net(), stages, lr=0.1, weight_decay=0.0)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.extra = Net(), nn.Linear(2, 2)


def test_splitting_keeps_hyper_parameters_and_is_idempotent() -> None:
    root = Root()
    parameters = list(root.parameters())
    groups = [
        {"params": parameters[:5], "lr": 0.5, "betas": (0.5, 0.6)},
        {"params": parameters[5:], "weight_decay": 0.7},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    assert split_groups_by_stage(optimizer, root, Map(), root.net) == [0, 0, 1, 1]
    got = [(g["name"], g["stage"], g["lr"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups]
    assert got == [
        ("stem/group0", 0, 0.5, (0.5, 0.6), 0.01),
        ("body/group0", 1, 0.5, (0.5, 0.6), 0.01),
        ("fc/group1", 2, 0.1, (0.9, 0.999), 0.7),
        ("other/group1", 3, 0.1, (0.9, 0.999), 0.7),
    ]
    assert optimizer.param_groups[3]["param_names"] == ["extra.weight", "extra.bias"]
    before = [dict(g) for g in optimizer.param_groups]
    assert split_groups_by_stage(optimizer, root, Map(), root.net) == [0, 1, 2, 3]
    assert [g["name"] for g in optimizer.param_groups] == [g["name"] for g in before]
    assert all(g["params"] == b["params"] for g, b in zip(optimizer.param_groups, before, strict=True))


def test_groups_made_by_stage_are_left_as_they_are() -> None:
    model = Net()
    optimizer = torch.optim.SGD(stage_param_groups(model, Map(), lr=0.1, weight_decay=0.3), lr=0.1)
    before = summary(optimizer.param_groups)
    assert split_groups_by_stage(optimizer, model, Map(), model) == [0, 1, 2, 3, 4]
    assert summary(optimizer.param_groups) == before


def test_groups_by_coarse_stages_split_further_keep_their_kind() -> None:
    model = Net()
    optimizer = torch.optim.SGD(stage_param_groups(model, Map(), lr=0.1, weight_decay=0.3), lr=0.1)
    finer = Map(**{"stem.1.weight": 1, "stem.1.bias": 1})
    split_groups_by_stage(optimizer, model, finer, model)
    assert [g["name"] for g in optimizer.param_groups if g["stage"] == 1] == ["body/no_decay", "body/decay"]


def test_what_cannot_be_split() -> None:
    model = Net()
    with pytest.raises(UserError, match="LBFGS keeps all parameters in one group"):
        split_groups_by_stage(torch.optim.LBFGS(model.parameters()), model, Map(), model)
    stranger = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(3, 7))], lr=0.1)
    with pytest.raises(UserError, match=r"parameter of shape \(3, 7\) that the LightningModule does not"):
        split_groups_by_stage(stranger, model, Map(), model)


def test_a_rate_that_is_a_tensor_is_not_shared() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))
    split_groups_by_stage(optimizer, model, Map(), model)
    optimizer.param_groups[0]["lr"].fill_(0.5)
    assert float(optimizer.param_groups[1]["lr"]) == pytest.approx(0.1)


def test_names_are_those_of_the_module_that_was_compiled() -> None:
    root = Root()
    root.net = torch.compile(root.net, backend="eager")  # type: ignore[assignment]
    assert "net.body.weight" in parameter_names(root).values()


def test_schedulers_of_others_that_follow_torchs_names() -> None:
    class Theirs:
        """As timm's schedulers are made."""

        def __init__(self) -> None:
            self.base_values, self.milestones, self._last_lr = [0.1, 0.2], [3, 4], (1, 2)

    theirs = Theirs()
    expand_schedulers(theirs, [0, 0, 1], 2)
    assert (theirs.base_values, theirs.milestones, theirs._last_lr) == ([0.1, 0.1, 0.2], [3, 4], (1, 1, 2))


def test_state_without_names_or_with_disagreeing_groups_is_an_error() -> None:
    model = Net()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    named = torch.optim.SGD(stage_param_groups(model, Map(), lr=0.1, weight_decay=0.3), lr=0.1, momentum=0.9)
    match_state_by_name(named)
    with pytest.raises(UserError, match="has no parameter names"):
        named.load_state_dict(plain.state_dict())
    whole = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    match_state_by_name(whole)
    with pytest.raises(UserError, match="in groups with different weight_decay"):
        whole.load_state_dict(named.state_dict())
    named.load_state_dict(whole.state_dict())
    assert [g["weight_decay"] for g in named.param_groups] == [0, 0, 0, 0, 0]
