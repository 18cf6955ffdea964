"""Parameter groups by stage, built or split once, named, covering every parameter exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from tl_lightning.errors import UserError
from tl_lightning.optim.lr_scale import SCALE

OUTSIDE = "other"  # name of the groups of parameters that belong to no stage

_COMPILED = "_orig_mod."  # torch.compile puts it into parameter names; the same model without it must match


class StageMap(Protocol):
    """What is asked of stages: their names and the stage of every parameter of the model."""

    names: tuple[str, ...]

    def parameter_stage(self) -> dict[str, int]:
        """Return the stage of every parameter by its name in the model."""
        ...


def is_no_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is left out: biases and the scales of norms, all of them vectors."""
    return parameter.ndim <= 1


def stage_param_groups(
    model: nn.Module, stages: StageMap, *, lr: float, weight_decay: float, prefix: str = ""
) -> list[dict[str, Any]]:
    """Return the groups (stage x decay) of all parameters of ``model``, shallow to deep.

    Args:
        model: The model that ``stages`` describe.
        stages: Its stages.
        lr: Base learning rate of every group.
        weight_decay: Weight decay of matrices and convolution kernels; biases and norms get none.
        prefix: Put before the parameter names, for example ``"backbone."``.

    Returns:
        Groups with ``params``, ``param_names``, ``name`` (``layer1/decay``), ``stage``, ``lr``, ``weight_decay`` and
        ``stage_lr_scale`` (1.0); empty groups are left out.

    Raises:
        UserError: The stages do not cover the parameters of ``model`` exactly.
    """
    stage_of = _checked_coverage(model, stages.parameter_stage())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        key = (stage_of[name], is_no_decay(name, parameter))
        group = groups.setdefault(key, _new_group(stages.names[key[0]], *key, lr, weight_decay))
        group["params"].append(parameter)
        group["param_names"].append(prefix + name)
    return [groups[key] for key in sorted(groups)]


def _new_group(stage_name: str, stage: int, no_decay: bool, lr: float, weight_decay: float) -> dict[str, Any]:
    return {
        "params": [],
        "param_names": [],
        "name": f"{stage_name}/{'no_decay' if no_decay else 'decay'}",
        "stage": stage,
        "lr": lr,
        "weight_decay": 0.0 if no_decay else weight_decay,
        SCALE: 1.0,
    }


def _checked_coverage(model: nn.Module, stage_of: Mapping[str, int]) -> Mapping[str, int]:
    names = {name for name, _ in model.named_parameters()}
    if names != stage_of.keys():
        missing, extra = sorted(names - stage_of.keys()), sorted(stage_of.keys() - names)
        what = f"no stage holds {missing[0]}" if missing else f"the model has no parameter {extra[0]}"
        raise UserError(f"the stages do not fit the model: {what}; make them from this very model")
    return stage_of


def split_groups_by_stage(optimizer: Optimizer, root: nn.Module, stages: StageMap, module: nn.Module) -> list[int]:
    """Split the groups of an optimizer by stage, in place; a second call changes nothing.

    Every group keeps its own hyper-parameters and takes the keys of ``stage_param_groups``. Parameters that are
    not in ``module`` form groups with ``stage = len(stages.names)``. Groups are ordered by stage, then as they were.

    Args:
        optimizer: Any torch optimizer that knows parameter groups.
        root: The module that names the parameters (the LightningModule).
        stages: The stages of ``module``.
        module: The part of ``root`` that is staged; may be ``root`` itself.

    Returns:
        For every group now there, the position of the group it came from.

    Raises:
        UserError: The optimizer cannot have several groups, or holds a parameter that ``root`` does not.
    """
    _check_splittable(optimizer)
    names = parameter_names(root)
    stage_of = {id(p): stages.parameter_stage()[name] for name, p in module.named_parameters()}
    parts: list[tuple[int, int, dict[str, Any]]] = []
    for position, group in enumerate(optimizer.param_groups):
        members = _by_stage(group["params"], stage_of, len(stages.names))
        for stage, parameters in members.items():
            part = {key: _own(value) for key, value in group.items() if key not in ("params", "param_names")}
            part["params"] = parameters
            part["param_names"] = [_name_of(p, names) for p in parameters]
            if stage < len(stages.names) or "stage" not in part:  # outside, another staged module may own it
                part["stage"] = stage
            part["name"] = _part_name(group, position, len(members), [*stages.names, OUTSIDE][stage], optimizer)
            part.setdefault(SCALE, 1.0)
            parts.append((stage, position, part))
    parts.sort(key=lambda part: part[:2])
    optimizer.param_groups[:] = [group for _, _, group in parts]
    return [position for _, position, _ in parts]


def parameter_names(root: nn.Module) -> dict[int, str]:
    """Return the name of every parameter by its ``id``, without what torch.compile adds."""
    return {id(p): name.replace(_COMPILED, "") for name, p in root.named_parameters()}


def _check_splittable(optimizer: Optimizer) -> None:
    if isinstance(optimizer, LBFGS):
        raise UserError("LBFGS keeps all parameters in one group and cannot train by stage: use another optimizer")
    if hasattr(optimizer, "consolidate_state_dict"):
        raise UserError(f"{type(optimizer).__name__} shards its groups over processes: use a plain torch optimizer")


def _own(value: Any) -> Any:
    """Return the value of an option; a rate that is a tensor is written in place, so every group needs its own."""
    return value.clone() if isinstance(value, Tensor) else value


def _by_stage(parameters: list[nn.Parameter], stage_of: dict[int, int], outside: int) -> dict[int, list[nn.Parameter]]:
    members: dict[int, list[nn.Parameter]] = {}
    for parameter in parameters:
        members.setdefault(stage_of.get(id(parameter), outside), []).append(parameter)
    return members


def _name_of(parameter: nn.Parameter, names: dict[int, str]) -> str:
    if id(parameter) not in names:
        raise UserError(
            f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that the LightningModule does not: "
            "register it as a parameter of the module"
        )
    return names[id(parameter)]


def _part_name(group: dict[str, Any], position: int, parts: int, stage_name: str, optimizer: Optimizer) -> str:
    own = group.get("name")
    if own is not None and (parts == 1 or "stage" in group):
        return own if parts == 1 else f"{stage_name}/{own.rpartition('/')[2]}"
    if own is not None:
        return f"{stage_name}/{own}"
    return stage_name if len(optimizer.param_groups) == 1 else f"{stage_name}/group{position}"
