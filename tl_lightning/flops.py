"""Count floating point operations, those of grouped convolutions rightly.

torch's own counter takes the backward pass of a grouped convolution for that of a dense one: for the depthwise layers
of a MobileNet or EfficientNet it counts as many times too much as there are channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """Return a context manager that counts; ``get_total_flops()`` has the sum, a multiply-add counting two."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    grad_shape: Sequence[int],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    out_shape: Any,
) -> int:
    """Return the operations of a convolution's backward pass: as many as forward for each of its two gradients.

    A weight [C_out, C_in / groups, *kernel] meets every position of the output, a transposed one every position of
    the input.
    """
    spatial = input_shape[2:] if transposed else grad_shape[2:]
    forward = 2 * input_shape[0] * prod(spatial) * prod(weight_shape)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))
