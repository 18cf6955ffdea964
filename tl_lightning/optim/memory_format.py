"""The memory format of an optimizer's state."""

from __future__ import annotations

import torch
from torch import Tensor


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the memory format of its parameters, in place.

    On a CPU torch's fused optimizers walk the memory of a parameter and of its state side by side. After a resume from
    a checkpoint that was written in another format, every weight would be moved by the moments of another one.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
