"""Gradients past ReLUs that are silent, so that an ascent from noise can begin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RELU, _RELU6 = (0.0, math.inf), (0.0, 6.0)
_BOUNDS = {F.relu: _RELU, torch.relu: _RELU, Tensor.relu: _RELU, F.relu6: _RELU6}


class RedirectedReLUs(TorchFunctionMode):
    """Within this mode a gradient that a ReLU or ReLU6 would block altogether passes it.

    As in Lucid (Olah et al. 2017): where nothing of an example's gradient gets through, it passes as if there were no
    ReLU, except where it would push a silent unit further down or a saturated one further up. The values of the
    forward pass stay the same. ReLUs called as in-place methods of tensors stay as they are.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        bounds = _BOUNDS.get(func)
        if func is F.hardtanh:
            low = args[1] if len(args) > 1 else named.get("min_val", -1.0)
            high = args[2] if len(args) > 2 else named.get("max_val", 1.0)
            bounds = (float(low), float(high))
        values = args[0] if args else named.get("input")
        if bounds is None or not isinstance(values, Tensor):
            return func(*args, **named)
        return _Redirected.apply(values, *bounds)


class _Redirected(torch.autograd.Function):
    """Clamps; see ``RedirectedReLUs`` for the gradient (of a loss: descent follows its negative)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.bounds = low, high
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        low, high = ctx.bounds
        passed = gradient * ((values > low) & (values < high))
        outwards = ((values <= low) & (gradient > 0)) | ((values >= high) & (gradient < 0))
        redirected = gradient.masked_fill(outwards, 0.0)
        blocked = (passed.flatten(1).abs().sum(1) == 0).view(-1, *[1] * (values.ndim - 1))
        return torch.where(blocked, redirected, passed), None, None
