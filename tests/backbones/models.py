"""Models and inputs that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tl_lightning.backbones import create_backbone, input_spec

SMALL = (
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "resnet18",
    "mnasnet0_5",
    "efficientnet_lite0",
    "googlenet",
    "densenet121",
    "regnet_y_400mf",
    "swin_t",
)


class _WithoutStorage(TorchFunctionMode):
    """Puts what layers allocate on the meta device; ``torch.device("meta")`` stops RegNet's own arithmetic as well."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def without_storage(name: str, **arguments: Any) -> nn.Module:
    """Build a backbone of any size in no memory."""
    with _WithoutStorage():
        return create_backbone(name, num_classes=3, **arguments)


def images(name: str, count: int = 2) -> torch.Tensor:
    """Return random images of a small size that the backbone can take."""
    spec = input_spec(name)
    size = spec.image_size if spec.min_size == spec.image_size else max(64, spec.min_size)
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
