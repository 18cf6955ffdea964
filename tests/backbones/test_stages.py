"""Every parameter, buffer and module belongs to one stage, and the stages are those that people name."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from models import SMALL, without_storage
from torch import nn
from torch.nn import functional as F

from tl_lightning.backbones import Stages, create_backbone
from tl_lightning.errors import UserError

NAMES = {
    "resnet18": ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"],
    "alexnet": [f"features.{i}" for i in (0, 3, 6, 8, 10)] + ["classifier", "classifier.6"],
    "squeezenet1_1": [f"features.{i}" for i in (0, 3, 4, 6, 7, 9, 10, 11, 12)] + ["classifier"],
    "mnasnet0_5": [f"layers.{i}" for i in (0, 3, 6, 8, 9, 10, 11, 12, 13, 14)] + ["classifier"],
    "efficientnet_lite0": [f"features.{i}" for i in range(9)] + ["classifier"],
    "mobilenet_v3_small": [f"features.{i}" for i in range(13)] + ["classifier", "classifier.3"],
    "regnet_y_400mf": ["stem", *(f"trunk_output.block{i}" for i in (1, 2, 3, 4)), "fc"],
    "vit_b_32": ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "heads"],
    "swin_t": [*(f"features.{i}" for i in range(8)), "head"],
    "maxvit_t": ["stem", *(f"blocks.{i}" for i in range(4)), "classifier", "classifier.5"],
    "densenet121": [
        "features.conv0",
        *(f"features.{kind}{i}" for i in (1, 2, 3) for kind in ("denseblock", "transition")),
        "features.denseblock4",
        "classifier",
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_coarse_stages_have_the_names_that_people_use(name: str) -> None:
    assert list(Stages(without_storage(name)).names) == NAMES[name]


@pytest.mark.parametrize("granularity", ["module", "boundary"])
@pytest.mark.parametrize("name", SMALL)
def test_the_stages_partition_parameters_buffers_and_modules(name: str, granularity: str) -> None:
    check_partition(without_storage(name), granularity)


def check_partition(model: nn.Module, granularity: str) -> Stages:
    stages = Stages(model, granularity)  # type: ignore[arg-type]
    parameters, buffers, modules = stages.parameter_stage(), stages.buffer_stage(), stages.module_stage()
    named = dict(model.named_parameters())
    assert {id(named[key]) for key in parameters} == {id(p) for p in model.parameters()}
    assert list(parameters) == [key for key, _ in model.named_parameters()]
    assert list(buffers) == [key for key, _ in model.named_buffers()]
    assert list(modules) == [key for key, _ in model.named_modules()]
    assert set(parameters.values()) == set(range(len(stages))), "a stage without parameters"
    assert len(set(stages.names)) == len(stages)
    for key, stage in {**parameters, **buffers}.items():
        owner = modules[key.rpartition(".")[0]]
        assert stage <= owner < len(stages)
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert {parameters[f"{key}.weight"], buffers[f"{key}.running_mean"]} == {modules[key]}
    classifier = [p for p, stage in parameters.items() if stage == len(stages) - 1]
    assert 1 <= len(classifier) <= 2, f"the head is one layer, not {classifier}"
    return stages


@pytest.mark.parametrize("granularity", ["module", "boundary"])
def test_stages_run_in_the_order_of_the_computation(granularity: str) -> None:
    model = create_backbone("resnet18", num_classes=3)
    stages = Stages(model, granularity)  # type: ignore[arg-type]
    calls: list[int] = []
    where = stages.module_stage()
    for key, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda *_, stage=where[key]: calls.append(stage))
    model(torch.rand(2, 3, 32, 32))
    assert calls == sorted(calls)


def test_two_equal_batch_norms_are_two() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    )
    stages = Stages(model, "boundary")
    assert stages.names == ("0", "2", "4")
    assert (stages.parameter_stage()["1.weight"], stages.parameter_stage()["3.weight"]) == (0, 1)


class Shared(nn.Module):
    """Uses one convolution and one norm at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.between, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.twice(self.stem(x)))
        x = self.norm(self.twice(self.between(x)))
        return self.head(x.mean((2, 3)))


def test_a_shared_layer_belongs_to_its_earliest_use() -> None:
    stages = Stages(Shared(), "boundary")
    first = stages.index("twice")
    assert first < stages.index("between")
    assert {stages.parameter_stage()[k] for k in ("twice.weight", "norm.weight")} == {first}
    assert {stages.buffer_stage()["norm.running_mean"], stages.module_stage()["norm"]} == {first}


def test_auxiliary_heads_belong_to_the_head() -> None:
    model = without_storage("googlenet", aux_logits=True)
    stages = Stages(model)
    last = len(stages) - 1
    auxiliary = {key: stage for key, stage in stages.parameter_stage().items() if key.startswith("aux")}
    assert len(auxiliary) > 10
    assert set(auxiliary.values()) == {last}
    assert {s for k, s in stages.buffer_stage().items() if k.startswith("aux")} == {last}
    assert stages.module_stage()["aux1.conv.bn"] == last


class Spare(nn.Module):
    """Holds layers that it does not use, one of them in a block that it does use."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"used": nn.Conv2d(3, 4, 3), "spare": nn.BatchNorm2d(4), "idle": nn.ReLU()})
        self.body, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.block["used"](x)).mean((2, 3)))


def test_what_the_model_does_not_use_belongs_to_the_head() -> None:
    stages = Stages(Spare())
    assert stages.names == ("block", "body", "head")
    assert {stages.parameter_stage()["block.spare.weight"], stages.buffer_stage()["block.spare.running_var"]} == {2}
    assert [stages.module_stage()[f"block.{key}"] for key in ("used", "spare", "idle")] == [0, 2, 0]


@pytest.mark.parametrize("stage", ["layer2", "layer2.0", "layer2.0.bn1", "layer2.1.add", 2, -4])
def test_a_stage_is_found_by_name_module_boundary_or_number(stage: str | int) -> None:
    assert Stages(create_backbone("resnet18")).index(stage) == 2


def test_an_unknown_stage_is_answered_with_the_nearest() -> None:
    stages = Stages(create_backbone("resnet18"))
    with pytest.raises(UserError, match="did you mean layer2"):
        stages.index("layr2")
    with pytest.raises(UserError, match=r"there are 6, 0 \(conv1\) to 5 \(fc\)"):
        stages.index(6)
    with pytest.raises(UserError, match="no stage True"):
        stages.index(True)


def test_a_module_that_spans_stages_is_no_stage() -> None:
    with pytest.raises(UserError, match=r"'features' spans several stages: name one of features\.0, features\.1"):
        Stages(without_storage("mobilenet_v2")).index("features")


@pytest.mark.parametrize(
    ("given", "frozen"),
    [("none", 0), ("head", 5), (0, 0), (3, 3), (-1, 5), (-2, 4), ("-1", 5), ("layer3", 3), ("fc", 5)],
)
def test_depth_is_the_number_of_frozen_stages(given: str | int, frozen: int) -> None:
    assert Stages(create_backbone("resnet18")).depth(given) == frozen


def test_a_depth_named_head_that_the_model_has_is_that_stage() -> None:
    stages = Stages(without_storage("swin_t"))
    assert stages.names[-1] == "head"
    assert stages.depth("head") == len(stages) - 1


def test_the_dropout_before_the_classifier_belongs_to_the_head() -> None:
    stages = Stages(create_backbone("efficientnet_lite0"))
    assert stages.module_stage()["classifier.0"] == len(stages) - 1
    assert stages.boundary_before(-1).name == "flatten"


def test_nothing_lies_before_the_first_stage() -> None:
    with pytest.raises(UserError, match="'conv1' is the first"):
        Stages(create_backbone("resnet18")).boundary_before(0)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = create_backbone("googlenet", num_classes=3, aux_logits=True).train()
    model.inception3a.eval()
    flags = {key: module.training for key, module in model.named_modules()}
    attributes = {key: set(vars(module)) for key, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    stages = Stages(model)
    stages.split("inception4a.cat")
    assert torch.equal(torch.rand(3), expected)
    assert {key: module.training for key, module in model.named_modules()} == flags
    assert {key: set(vars(module)) for key, module in model.named_modules()} == attributes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Counting(nn.Module):
    """Changes a buffer in forward and makes a tensor of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        self.calls.add_(1)
        if scale is not None:
            raise AssertionError("traced with another argument than the model is called with")
        return self.head(F.relu(self.first(x) + torch.tensor([1.0, 2.0, 3.0, 4.0])))


def test_tracing_runs_no_forward_that_changes_buffers() -> None:
    model = Counting()
    stages = Stages(model, "boundary")
    assert model.calls == 0
    assert "_tensor_constant0" not in vars(model)
    assert stages.buffer_stage() == {"calls": 0}
    prefix, suffix = stages.split("relu")
    x = torch.rand(3, 4)
    assert torch.equal(suffix(prefix(x)), model(x))


class Untraceable(nn.Module):
    """Steers by the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.body(x)) * self.scale
        return self.head(x if x.sum() > 0 else -x)


class Dicing(nn.Module):
    """Skips its layers at random."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x) if torch.rand(()) < 0.5 else x)


@pytest.mark.parametrize("model", [Untraceable(), Dicing()], ids=["by value", "by chance"])
def test_an_untraceable_model_gets_an_error_that_names_the_way_out(model: nn.Module) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=r"cannot be traced by torch\.fx .*Stages\.from_modules"):
        Stages(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_list_of_modules_makes_stages() -> None:
    model = Untraceable()
    stages = Stages.from_modules(model, ["body", "norm", "scale", "head"])
    assert stages.names == ("body", "norm", "scale", "head")
    assert stages.parameter_stage() == {
        "scale": 2,
        "body.weight": 0,
        "body.bias": 0,
        "norm.weight": 1,
        "norm.bias": 1,
        "head.weight": 3,
        "head.bias": 3,
    }
    assert set(stages.buffer_stage().values()) == {1}
    assert stages.module_stage() == {"": 3, "body": 0, "norm": 1, "head": 3}
    assert stages.depth("norm") == 1
    with pytest.raises(UserError, match="cannot be split"):
        stages.boundary_before("head")
    with pytest.raises(UserError, match="cannot be split"):
        stages.split("body")


def test_the_most_specific_module_of_a_list_decides() -> None:
    model = create_backbone("resnet18")
    stages = Stages.from_modules(model, ["conv1", "bn1", "layer1", "layer2", "layer2.1", "layer3", "layer4", "fc"])
    assert stages.parameter_stage()["layer2.0.conv1.weight"] == 3
    assert stages.parameter_stage()["layer2.1.conv1.weight"] == 4
    assert stages.module_stage()["layer2.1.bn1"] == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["body", "norm", "head"], "do not cover scale"),
        (["body", "norm", "scale", "haed"], "did you mean head"),
        (["body", "body", "norm", "scale", "head"], "each named once"),
        ([], "at least one module"),
    ],
)
def test_a_list_of_modules_must_be_right(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stages.from_modules(Untraceable(), names)


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean module"):
        Stages(Counting(), "modules")  # type: ignore[arg-type]


def test_stages_survive_copying_and_pickling_with_their_model() -> None:
    stages = Stages(create_backbone("squeezenet1_1", num_classes=3))
    for twin in (copy.deepcopy(stages), pickle.loads(pickle.dumps(stages))):
        assert twin.names == stages.names
        assert twin.boundary_before("head") == stages.boundary_before("head")
        prefix, _ = twin.split(twin.boundary_before("head"))
        own = {id(p) for p in stages.split("features.0")[0].parameters()}
        assert not own & {id(p) for p in prefix.parameters()}
