"""Weight gradients of convolutions as one matrix product.

oneDNN is slow at them on small maps: over one pixel that of a 3x3 convolution of 512 channels takes tens of times as
long as its input gradient, and so does that of a 5x5 depthwise convolution over 3x3 pixels
(tests/benchmarks/convolution_gradients.py prints both).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.flop_counter import register_flop_formula


def dense_weight_gradient(
    input: Tensor, grad: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Return the gradient of a dense convolution's weight, [C', C, kernel height, kernel width], channels last.

    The output pixels by channel times the patches of the input that they see: one matrix product.

    Args:
        input: Input of the convolution [N, C, H, W].
        grad: Gradient of its output [N, C', H', W'].
        kernel: Height and width of the kernel.
        stride: Strides along height and width.
        padding: Zeros on both sides along height and width.
    """
    batch, outputs, height, width = grad.shape
    patches = pad(input, [padding[1], padding[1], padding[0], padding[0]]).permute(0, 2, 3, 1)
    for axis in (0, 1):
        patches = patches.unfold(axis + 1, kernel[axis], stride[axis])
    patches = patches[:, :height, :width].permute(0, 1, 2, 4, 5, 3)  # [N, H', W', kernel height, kernel width, C]
    weight = pixels_by_channel(grad).t() @ patches.reshape(batch * height * width, prod(kernel) * input.shape[1])
    return weight.view(outputs, *kernel, input.shape[1]).permute(0, 3, 1, 2)


def pixels_by_channel(maps: Tensor) -> Tensor:
    """Return maps [N, C, H, W] as [N * H * W, C], without a copy where they are channels last."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


@torch.library.custom_op("tl_lightning::depthwise_weight_gradient", mutates_args=())
def depthwise_weight_gradient(
    input: Tensor, grad: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Return the gradient of a depthwise convolution's weight, [C, 1, kernel height, kernel width].

    The products of each input pixel with each output pixel, channel by channel, are summed over the batch; a weight's
    gradient is the sum of the pairs of pixels that it connects. It is one operation to torch, so that FLOP counters
    count the convolution and not its arithmetic.

    Args:
        input: Input of the convolution [N, C, H, W].
        grad: Gradient of its output [N, C, H', W'].
        kernel: Height and width of the kernel.
        stride: Strides along height and width.
        padding: Zeros on both sides along height and width.
    """
    inputs, grads = _pixels(input)[:, :, None], _pixels(grad)[:, None]
    pairs = input.new_zeros(inputs.shape[1], grads.shape[2], input.shape[1])
    for one, other in zip(inputs, grads, strict=True):  # image by image the sum stays in the processor's cache
        pairs.addcmul_(one, other)
    connected = _connected(tuple(input.shape[2:]), tuple(grad.shape[2:]), tuple(kernel), tuple(stride), tuple(padding))
    return (pairs.flatten(0, 1).t() @ connected).view(-1, 1, *kernel)


@depthwise_weight_gradient.register_fake
def _(input: Tensor, grad: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    return input.new_empty(input.shape[1], 1, *kernel)


@register_flop_formula(torch.ops.tl_lightning.depthwise_weight_gradient)
def _flops(input: Any, grad: Any, kernel: list[int], *_: Any, **__: Any) -> int:
    """Return the operations of the convolution: a multiply-add of every output pixel with every weight."""
    return 2 * prod(grad) * prod(kernel)


def _pixels(maps: Tensor) -> Tensor:
    """Return maps [N, C, H, W] as [N, H * W, C], without a copy where they are channels last."""
    return maps.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1, 2)


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
