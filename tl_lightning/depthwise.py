"""The weight gradient of a depthwise convolution as one matrix product.

oneDNN is quick at 3x3 kernels and slow at larger ones: over 3x3 pixels the weight gradient of a 5x5 depthwise
convolution takes tens of times as long as that of a 3x3 one (tests/benchmarks/convolution_gradients.py prints both).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def output_size(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> tuple[int, ...]:
    """Return height and width of a convolution's output."""
    return tuple((s + 2 * p - k) // t + 1 for s, k, t, p in zip(size, kernel, stride, padding, strict=True))


@torch.library.custom_op("tl_lightning::depthwise_weight_gradient", mutates_args=())
def depthwise_weight_gradient(
    input: Tensor, grad: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Return the gradient of a depthwise convolution's weight, [C, 1, kernel height, kernel width].

    For every channel, the products of each input pixel with each output pixel, summed over the batch, are one matrix
    product; a weight's gradient is the sum of the pairs of pixels that it connects. It is one operation to torch, so
    that FLOP counters count the convolution and not its arithmetic.

    Args:
        input: Input of the convolution [N, C, H, W].
        grad: Gradient of its output [N, C, H', W'].
        kernel: Height and width of the kernel.
        stride: Strides along height and width.
        padding: Zeros on both sides along height and width.
    """
    pairs = torch.bmm(_by_channel(input).transpose(1, 2), _by_channel(grad))
    connected = _connected(tuple(input.shape[2:]), tuple(grad.shape[2:]), tuple(kernel), tuple(stride), tuple(padding))
    return (pairs.flatten(1) @ connected).view(-1, 1, *kernel)


@depthwise_weight_gradient.register_fake
def _(input: Tensor, grad: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    return input.new_empty(input.shape[1], 1, *kernel)


@register_flop_formula(torch.ops.tl_lightning.depthwise_weight_gradient)
def _flops(input: Any, grad: Any, kernel: list[int], *_: Any, **__: Any) -> int:
    """Return the operations of the convolution: a multiply-add of every output pixel with every weight."""
    return 2 * prod(grad) * prod(kernel)


def _by_channel(maps: Tensor) -> Tensor:
    """Return maps [N, C, H, W] as [C, N, H * W]."""
    return maps.contiguous().flatten(2).transpose(0, 1)


@lru_cache(maxsize=64)
def _connected(
    size: tuple[int, int],
    output: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Return which weight connects which pixels: zeros and ones [input pixels * output pixels, kernel pixels]."""
    rows, columns = (_offsets(size[a], output[a], stride[a], padding[a], kernel[a]) for a in (0, 1))
    return torch.einsum("xyi,uvj->xuyvij", rows, columns).reshape(-1, prod(kernel))


def _offsets(size: int, output: int, stride: int, padding: int, kernel: int) -> Tensor:
    """Return, along one axis, which kernel position connects which places: zeros and ones [size, output, kernel]."""
    position = torch.arange(size)[:, None] - stride * torch.arange(output) + padding
    return (position[..., None] == torch.arange(kernel)).float()
