"""Convolutions on a CPU with gradients from matrix products, where those are faster than oneDNN's."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tl_lightning.weight_gradients import dense_weight_gradient, depthwise_weight_gradient, pixels_by_channel

# Limits of what gains in channels-last format; tests/benchmarks/convolution_gradients.py prints both ways by size.
LARGEST_ROWS = 4096  # pixels of a batch for 1x1: 0.5 to 1.0 of oneDNN's time; beyond, narrow layers take up to 1.2
LARGEST_PATCHES = 1024  # output pixels of a batch for dense 3x3: 0.07 to 1.1; beyond, wide layers take 0.7 to 1.0
LARGEST_PAIRS = 36 * 36  # pairs of pixels for depthwise 5x5 and 7x7: 0.02 to 1.1, mostly more beyond


class ConvolutionGradients(TorchFunctionMode):
    """Context in which small convolutions compute their gradients as matrix products.

    The output is that of ``conv2d`` bit for bit, the gradients are equal up to rounding. It concerns three kinds, in
    float32 on a CPU, and leaves every other call alone:

    * 1x1 convolutions of stride 1 over channels-last maps of at most ``LARGEST_ROWS`` pixels in the batch;
    * other dense ones, channels-last, of at most ``LARGEST_PATCHES`` output pixels in the batch: the weight gradient;
    * depthwise ones of at most ``LARGEST_PAIRS`` pairs of input and output pixels, with a kernel of 5 or more pixels
      or larger than its input: the weight gradient.

    Tasks use it by themselves::

        with ConvolutionGradients():
            loss = criterion(network(image), label)
        loss.backward()
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, or the faster form of it."""
        if func is torch.conv2d:
            faster = _faster(*args, **(kwargs or {}))
            if faster is not None:
                function, arguments = faster
                return function.apply(*arguments)
        return func(*args, **(kwargs or {}))


def _faster(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, tuple[Any, ...]] | None:
    """Return the function for a convolution that gains and its arguments, or None."""
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor) and isinstance(padding, int | tuple)):
        return None
    stride, padding, dilation = (_pair(value) for value in (stride, padding, dilation))
    if not (
        torch.is_grad_enabled()
        and weight.requires_grad
        and input.ndim == 4
        and dilation == (1, 1)
        and input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    ):
        return None
    kernel = tuple(weight.shape[2:])
    if groups == 1 and kernel == stride == (1, 1) and padding == (0, 0):
        gains = input.stride(1) == 1 and len(input) * prod(input.shape[2:]) <= LARGEST_ROWS
        return (_Pointwise, (input, weight, bias)) if gains else None
    output = _output_size(input, weight, stride, padding)
    if groups == 1:
        gains = input.stride(1) == weight.stride(1) == 1 and len(input) * prod(output) <= LARGEST_PATCHES
    else:
        slow = max(kernel) >= 5 or max(kernel) > min(input.shape[2:])
        few = prod(input.shape[2:]) * prod(output) <= LARGEST_PAIRS
        gains = slow and few and groups == weight.shape[0] == input.shape[1]
    return (_Spatial, (input, weight, bias, stride, padding, groups)) if gains else None


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _output_size(input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
    height, width = (
        (input.shape[axis + 2] + 2 * padding[axis] - weight.shape[axis + 2]) // stride[axis] + 1 for axis in (0, 1)
    )
    return height, width


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution of stride 1, its backward pass as matrix products over the pixels."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.conv2d(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _ = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _of_torch(grad, input, weight, (1, 1), (0, 0), 1, list(needs))
        rows = pixels_by_channel(grad)
        batch, channels, height, width = input.shape
        input_grad = weight_grad = bias_grad = None
        if needs[0]:
            input_grad = (rows @ weight.flatten(1)).view(batch, height, width, channels).permute(0, 3, 1, 2)
        if needs[1]:
            weight_grad = (rows.t() @ pixels_by_channel(input)).view_as(weight)
        if needs[2]:
            bias_grad = rows.sum(0)
        return input_grad, weight_grad, bias_grad


class _Spatial(torch.autograd.Function):
    """A dense or depthwise convolution with another way to the weight gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int,
    ) -> Tensor:
        return torch.conv2d(input, weight, bias, stride, padding, 1, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.stride, ctx.padding, ctx.groups = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        own = needs[1] and not torch.is_grad_enabled()
        needs[1] = needs[1] and not own
        gradients = list(_of_torch(grad, input, weight, ctx.stride, ctx.padding, ctx.groups, needs))
        if own:
            weight_gradient = dense_weight_gradient if ctx.groups == 1 else depthwise_weight_gradient
            gradients[1] = weight_gradient(input, grad, list(weight.shape[2:]), list(ctx.stride), list(ctx.padding))
        return *gradients, None, None, None


def _of_torch(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return torch's gradients: also where the backward pass is itself differentiated (create_graph, torch.func)."""
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        grad, input, weight, [len(weight)], stride, padding, [1, 1], False, [0, 0], groups, needs
    )
    return gradients
