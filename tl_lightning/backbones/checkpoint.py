"""State dicts of backbones: read from a file, brought to the model's keys, loaded without the head."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tl_lightning.errors import UserError
from tl_lightning.paths import user_path

StateDict = OrderedDict[str, torch.Tensor]

# What wraps a backbone: DistributedDataParallel, torch.compile, a LightningModule.
_PREFIXES = ("module.", "_orig_mod.", "backbone.")
# GoogLeNet and Inception: absent without auxiliary heads, and sized by the number of classes with them.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# Files of early torchvision releases call DenseNet's layers `norm.1`; present ones `norm1`.
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


def read_state_dict(path: str | Path) -> StateDict:
    """Read a state dict from a file without running any code that the file may hold.

    Args:
        path: A state dict of torchvision or of a backbone, or a checkpoint that holds one under ``state_dict`` or
            ``model``: of Lightning (then the entries below ``backbone.`` are taken), of DistributedDataParallel
            (``module.``), of torch.compile.

    Raises:
        UserError: There is no such file, it is no checkpoint, or it holds more than plain data and tensors.
    """
    path = user_path(path)
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a file of tensors alone, and is not loaded as it could run code: "
            "save the model's state_dict() by itself"
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as a checkpoint ({reason})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(torch.is_tensor(v) for v in content.values()):
        raise UserError(f"{path} holds no state dict: save model.state_dict()")
    return _unwrapped(content)


def _unwrapped(content: Mapping[str, Any]) -> StateDict:
    """Take the entries of the backbone and strip what wraps it; other entries (metrics, losses) are left out."""
    entries = OrderedDict((key, value) for key, value in content.items() if torch.is_tensor(value))
    metadata = dict(getattr(content, "_metadata", {}))
    while prefix := next((p for p in _PREFIXES if any(key.startswith(p) for key in entries)), ""):
        entries = _below(entries, prefix)
        metadata = {f"{key}."[len(prefix) :][:-1]: v for key, v in metadata.items() if f"{key}.".startswith(prefix)}
    entries = OrderedDict((_OLD_DENSENET.sub(r"\1\2", key), value) for key, value in entries.items())
    entries._metadata = metadata  # type: ignore[attr-defined]  # the versions of the modules, which loading asks for
    return entries


def _below(entries: StateDict, prefix: str) -> StateDict:
    return OrderedDict((key.removeprefix(prefix), v) for key, v in entries.items() if key.startswith(prefix))


def load_backbone(
    model: nn.Module, state: Mapping[str, torch.Tensor], head: str, source: str, *, published: bool = False
) -> None:
    """Load all but the head; what belongs to the head or to an auxiliary classifier stays as it was initialised.

    Args:
        model: A backbone with its new head.
        state: A state dict as ``read_state_dict`` or torchvision returns it.
        head: Path of the classifier layer.
        source: What to call the weights in an error.
        published: The weights are torchvision's: layers that they do not cover (VGG-16's ``IMAGENET1K_FEATURES``
            holds NaN there) stay as they were initialised. In other weights NaN or infinity is an error.

    Raises:
        UserError: Entries are missing, unexpected, of another shape or not finite; up to five of each are named.
    """
    entries = _unwrapped(state)
    broken = sorted(k for k, v in entries.items() if v.is_floating_point() and not v.isfinite().all())
    if broken and not published:
        raise _mismatch(source, {"not finite": broken})
    fresh = {head, *(key.rpartition(".")[0] for key in broken)}
    own = model.state_dict()
    prepared = _prepared(entries, own, fresh)
    try:
        found = model.load_state_dict(prepared, strict=False)
    except RuntimeError as error:
        own = model.state_dict()  # of a MNASNet that became one of the first release while loading
        shapes = [f"{k} {_shape(prepared[k])} for {_shape(own[k])}" for k in own if _differs(prepared, own, k)]
        missing = _required([k for k in own if k not in prepared], fresh)
        unexpected = [k for k in prepared if k not in own]
        raise _mismatch(source, {"missing": missing, "unexpected": unexpected, "of another shape": shapes}) from error
    missing = _required(found.missing_keys, fresh)
    if missing or found.unexpected_keys:
        raise _mismatch(source, {"missing": missing, "unexpected": found.unexpected_keys})


def _prepared(state: StateDict, own: dict[str, torch.Tensor], fresh: set[str]) -> StateDict:
    """Leave out what shall stay fresh, and fold the RGB filters of the first layer where the model takes grey."""
    kept: StateDict = OrderedDict()
    for key, value in state.items():
        auxiliary = key.startswith(_AUXILIARY) and (key not in own or own[key].shape != value.shape)
        if auxiliary or _lies_in(key, fresh):
            continue
        kept[key] = value.sum(1, keepdim=True) if key in own and _is_rgb_for_grey(value, own[key]) else value
    versions = getattr(state, "_metadata", None) or getattr(own, "_metadata", {})
    kept._metadata = versions  # type: ignore[attr-defined]
    return kept


def _lies_in(key: str, layers: Iterable[str]) -> bool:
    return any(key.startswith(f"{layer}.") for layer in layers)


def _is_rgb_for_grey(weight: torch.Tensor, own: torch.Tensor) -> bool:
    """Tell whether a filter takes RGB where the model's takes grey."""
    return weight.ndim == 4 and weight.shape[1] == 3 and own.shape == (weight.shape[0], 1, *weight.shape[2:])


def _required(missing: list[str], fresh: set[str]) -> list[str]:
    return [
        key
        for key in missing
        if not (_lies_in(key, fresh) or key.startswith(_AUXILIARY) or key.endswith("num_batches_tracked"))
    ]


def _differs(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], key: str) -> bool:
    return key in state and state[key].shape != own[key].shape


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "scalar"


def _mismatch(source: str, found: Mapping[str, list[str]]) -> UserError:
    parts = [
        f"{kind} {', '.join(keys[:5])}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        for kind, keys in found.items()
        if keys
    ]
    return UserError(f"{source} does not fit the backbone: {'; '.join(parts)}")
