"""Backbones by name: torchvision's classification models with a new head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from tl_lightning.backbones.checkpoint import load_backbone, read_state_dict
from tl_lightning.backbones.graph import trace
from tl_lightning.backbones.inputs import NONE, check_name, input_spec, published_weights
from tl_lightning.backbones.partition import classifier_node
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.paths import user_path

_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def create_backbone(
    name: str,
    weights: str = NONE,
    num_classes: int = 1000,
    *,
    dropout: float | None = None,
    in_channels: int = 3,
    aux_logits: bool = False,
) -> nn.Module:
    """Build a model of torchvision with a new head.

    The head is always newly initialised: weights from a normal distribution of standard deviation 0.01, biases 0, so
    that training starts near the loss of a guess. (The authors' own initialisation may scale with the number of
    outputs: with two classes EfficientNet's starts at a loss above 10.) The values come from torch's global random
    state; with one seed they are the same for every choice of weights.

    Args:
        name: One of ``list_backbones()``.
        weights: ``"none"``, the name of published weights (``"IMAGENET1K_V1"``, ``"DEFAULT"``), or the path of a file
            that ``read_state_dict`` can read. Entries of the head are left out.
        num_classes: Number of outputs.
        dropout: Probability of the dropout before the classifier layer; the model's own where None.
        in_channels: 3, or 1 for grey images: the filters of the first layer are then summed over the colours, so that
            a grey image gives what it would give as RGB.
        aux_logits: Keep the auxiliary heads of GoogLeNet or Inception, which then return a named tuple in train mode.

    Raises:
        UserError: An unknown name, weights that cannot be had or do not fit, or a value out of range.
    """
    check_name(name)
    _check_arguments(name, num_classes, dropout, in_channels, aux_logits)
    _check_weights(name, weights)
    model = get_model(name, num_classes=num_classes, **_builder_arguments(name, weights, in_channels, aux_logits))
    if in_channels == 1:
        _sum_colours(model)
    head = _classifier(model)
    _initialise(model.get_submodule(head))
    if weights != NONE:
        member = published_weights(name, weights)
        state = _download(name, member) if member else read_state_dict(weights)
        load_backbone(model, state, head, f"{weights} of {name}" if member else weights, published=bool(member))
    if dropout is not None:
        _set_dropout(model, head, dropout)
    return model


def head_name(model: nn.Module) -> str:
    """Return the path of the head: the last linear or convolution layer.

    Where a ``Sequential`` holds that layer and the dropout before it and nothing else, it is the ``Sequential``'s path.

    Raises:
        UserError: The model cannot be traced.
    """
    layer = _classifier(model)
    owner = layer.rpartition(".")[0]
    container = model.get_submodule(owner)
    if owner and isinstance(container, nn.Sequential) and [type(m) for m in container][:-1] == [nn.Dropout]:
        return owner
    return layer


def _check_arguments(name: str, num_classes: int, dropout: float | None, in_channels: int, aux_logits: bool) -> None:
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, not {num_classes}")
    if dropout is not None and not 0.0 <= dropout < 1.0:
        raise UserError(f"dropout must be in [0, 1), not {dropout}")
    if in_channels not in (1, 3):
        raise UserError(f"in_channels must be 1 (grey) or 3 (RGB), not {in_channels}")
    if aux_logits and name not in _WITH_AUXILIARY_HEADS:
        raise UserError(f"{name} has no auxiliary heads: aux_logits is for {' and '.join(_WITH_AUXILIARY_HEADS)}")


def _check_weights(name: str, weights: str) -> None:
    if weights == NONE or published_weights(name, weights) or user_path(weights).is_file():
        return
    if Path(weights).suffix or "/" in weights:
        raise UserError(f"no weights file {weights}")
    raise unknown_name(f"weights of {name}", weights, [NONE, *get_model_weights(name).__members__])


def _builder_arguments(name: str, weights: str, in_channels: int, aux_logits: bool) -> dict[str, Any]:
    if name in _WITH_AUXILIARY_HEADS:
        # The published weights expect inputs in [-1, 1]: with ImageNet's normalisation before the model, this brings
        # them there. It is on without weights as well, so that a checkpoint does not depend on how its model began.
        return {"aux_logits": aux_logits, "init_weights": True, "transform_input": in_channels == 3}
    if name.startswith("vit_"):
        return {"image_size": input_spec(name, weights).image_size}
    return {}


def _sum_colours(model: nn.Module) -> None:
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    first.in_channels = 1


def _initialise(layer: nn.Module) -> None:
    """Give a classifier layer small weights, as torchvision's VGG, MobileNet and SqueezeNet do."""
    nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def _classifier(model: nn.Module) -> str:
    traced = trace(model)
    return traced.paths[classifier_node(model, traced)]


def _download(name: str, member: Any) -> dict[str, torch.Tensor]:
    try:
        return member.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights {member.name} of {name} could not be downloaded ({error}): fetch {member.url} by hand and "
            "give the file's path as weights, or take the backbone efficientnet_lite0, whose weights need no download"
        ) from error


def _set_dropout(model: nn.Module, head: str, dropout: float) -> None:
    """Set the dropout that feeds the head, or put one before it."""
    traced = trace(model)
    source = traced.nodes[classifier_node(model, traced)].args[0]
    feeding = model.get_submodule(str(source.target)) if source.op == "call_module" else None  # type: ignore[union-attr]
    if isinstance(feeding, nn.Dropout):
        feeding.p = dropout
    elif dropout > 0:
        owner, _, attribute = head.rpartition(".")
        layer = model.get_submodule(head)
        setattr(model.get_submodule(owner), attribute, nn.Sequential(nn.Dropout(dropout), layer))
