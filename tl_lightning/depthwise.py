"""Depthwise convolutions on a CPU with the gradient of their weights from one matrix product, where that is faster.

oneDNN is quick at 3x3 kernels and slow at larger ones: over 3x3 pixels the weight gradient of a 5x5 depthwise
convolution takes tens of times as long as that of a 3x3 one (tests/benchmarks/depthwise.py prints both).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import register_flop_formula

# 6x6 pixels to 6x6: measured alone in channels-last format (tests/benchmarks/depthwise.py), 5x5 and 7x7 kernels take
# 0.02 to 1.1 of oneDNN's time up to here; beyond, 5x5 kernels mostly take more.
LARGEST_PAIRS = 36 * 36


class DepthwiseGradients(TorchFunctionMode):
    """Context in which small depthwise convolutions compute their weight gradient as a product over pixel pairs.

    The output is that of ``conv2d`` bit for bit, the gradients are equal up to rounding. It concerns convolutions in
    float32 on a CPU with one filter a channel, at most ``LARGEST_PAIRS`` pairs of input and output pixels, and a
    kernel of 5 or more pixels or larger than its input; every other call is left alone. Tasks use it by themselves::

        with DepthwiseGradients():
            loss = criterion(network(image), label)
        loss.backward()
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, or the faster form of it."""
        if func is torch.conv2d:
            call = _arguments(*args, **(kwargs or {}))
            if call is not None:
                return _SmallDepthwise.apply(*call)
        return func(*args, **(kwargs or {}))


def _arguments(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...] | None:
    """Return the arguments of a convolution that gains, or None."""
    if groups == 1 or not (
        isinstance(input, Tensor) and isinstance(weight, Tensor) and isinstance(padding, int | tuple)
    ):
        return None
    stride, padding, dilation = (_pair(value) for value in (stride, padding, dilation))
    if not (
        torch.is_grad_enabled()
        and weight.requires_grad
        and groups == weight.shape[0] == input.shape[1]
        and input.ndim == 4
        and dilation == (1, 1)
        and input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    ):
        return None
    kernel, height, width = max(weight.shape[2:]), *input.shape[2:]
    slow = kernel >= 5 or kernel > min(height, width)
    few = prod(input.shape[2:]) * prod(_output_size(input, weight, stride, padding)) <= LARGEST_PAIRS
    return (input, weight, bias, stride, padding) if slow and few else None


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _output_size(input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
    height, width = (
        (input.shape[axis + 2] + 2 * padding[axis] - weight.shape[axis + 2]) // stride[axis] + 1 for axis in (0, 1)
    )
    return height, width


class _SmallDepthwise(torch.autograd.Function):
    """conv2d with another way to the weight gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        return torch.conv2d(input, weight, bias, stride, padding, 1, weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        # Where the backward pass is itself differentiated (create_graph, torch.func), torch's own is needed.
        own = ctx.needs_input_grad[1] and not torch.is_grad_enabled()
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not own, ctx.needs_input_grad[2]]
        channels = weight.shape[0]
        input_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
            grad, input, weight, [channels], ctx.stride, ctx.padding, [1, 1], False, [0, 0], channels, wanted
        )
        if own:
            weight_grad = depthwise_weight_gradient(input, grad, list(weight.shape[2:]), ctx.stride, ctx.padding)
        return input_grad, weight_grad, bias_grad, None, None


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
