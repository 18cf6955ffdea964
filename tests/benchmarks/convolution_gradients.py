"""Print what ConvolutionGradients takes against oneDNN's gradients, by size: 1x1, other dense, depthwise.

python tests/benchmarks/convolution_gradients.py [--batches 16 64] [--kernels 3 5 7] [--repeats 9]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tl_lightning.convolution_gradients import LARGEST_PAIRS, LARGEST_PATCHES, LARGEST_ROWS, _Pointwise
from tl_lightning.weight_gradients import dense_weight_gradient, depthwise_weight_gradient

SIDES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14)
PIXELS = 4608  # of one image's maps, over all channels
# The 1x1 convolutions of EfficientNet-Lite0 at 96 px and of ResNet-50 at 64 px: input channels, output channels, side.
POINTWISE = (
    (16, 96, 48), (24, 144, 24), (144, 24, 24), (40, 240, 12), (240, 40, 12), (80, 480, 6), (112, 672, 6),
    (672, 112, 6), (192, 1152, 3), (1152, 192, 3), (320, 1280, 3), (256, 64, 16),
    (128, 512, 8), (256, 1024, 4), (512, 2048, 2),
)  # fmt: skip

Call = Callable[[], tuple[Tensor, ...]]


def main() -> None:
    """Measure in turn, channels last, and print the medians in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--kernels", type=int, nargs="+", default=[3, 5, 7])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, channels last; ms; * within the limits\n")
    print("1x1, both gradients\nbatch inputs outputs side      oneDNN     own   ratio")
    for batch in options.batches:
        for inputs, outputs, side in POINTWISE:
            pointwise(batch, inputs, outputs, side, options.repeats)
    print("\ndense 3x3, weight gradient\nbatch channels side      oneDNN     own   ratio")
    for batch in options.batches:
        for channels in (64, 128, 256, 512):
            for side in (1, 2, 3, 4, 6, 8):
                dense(batch, channels, side, options.repeats)
    print("\ndepthwise, weight gradient\nbatch kernel side channels      oneDNN     own   ratio")
    for batch in options.batches:
        for kernel in options.kernels:
            for side in SIDES:
                depthwise(batch, kernel, side, options.repeats)


def dense(batch: int, channels: int, side: int, repeats: int) -> None:
    """Print one line."""
    line = weight_gradients(batch, channels, side, 3, 1, repeats)
    print(f"{batch:5} {channels:8} {side:4}   ", line, "*" if batch * side**2 <= LARGEST_PATCHES else "", flush=True)


def depthwise(batch: int, kernel: int, side: int, repeats: int) -> None:
    """Print one line."""
    channels = min(1152, 4 * PIXELS // side**2)
    line = weight_gradients(batch, channels, side, kernel, channels, repeats)
    within = side**4 <= LARGEST_PAIRS and (kernel >= 5 or kernel > side)
    print(f"{batch:5} {kernel:6} {side:4} {channels:8}   ", line, "*" if within else "", flush=True)


def weight_gradients(batch: int, channels: int, side: int, kernel: int, groups: int, repeats: int) -> str:
    """Return both medians, in turn, and their ratio."""
    weight = torch.randn(channels, channels // groups, kernel, kernel).contiguous(memory_format=torch.channels_last)
    maps, grad = channels_last(batch, channels, side), channels_last(batch, channels, side)
    padding = [kernel // 2] * 2

    def onednn() -> tuple[Tensor, ...]:
        return torch.ops.aten.convolution_backward(
            grad, maps, weight, None, [1, 1], padding, [1, 1], False, [0, 0], groups, [False, True, False]
        )[1:2]

    def own() -> tuple[Tensor, ...]:
        gradient = dense_weight_gradient if groups == 1 else depthwise_weight_gradient
        return (gradient(maps, grad, [kernel, kernel], [1, 1], padding),)

    return compared(onednn, own, repeats)


def pointwise(batch: int, inputs: int, outputs: int, side: int, repeats: int) -> None:
    """Print one line."""
    maps = channels_last(batch, inputs, side).requires_grad_()
    weight = nn.Conv2d(inputs, outputs, 1).weight
    grad = channels_last(batch, outputs, side)
    theirs, ours = torch.conv2d(maps, weight), _Pointwise.apply(maps, weight, None)

    def onednn() -> tuple[Tensor, ...]:
        return torch.autograd.grad(theirs, (maps, weight), grad, retain_graph=True)

    def own() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ours, (maps, weight), grad, retain_graph=True)

    print(f"{batch:5} {inputs:6} {outputs:7} {side:4}   ", compared(onednn, own, repeats), end=" ")
    print("*" if batch * side**2 <= LARGEST_ROWS else "", flush=True)


def channels_last(batch: int, channels: int, side: int) -> Tensor:
    """Return random maps."""
    return torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)


def compared(theirs: Call, ours: Call, repeats: int) -> str:
    """Return both medians, in turn, and their ratio, once they agree."""
    for expected, found in zip(theirs(), ours(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
    times = [(seconds(theirs), seconds(ours)) for _ in range(repeats)]
    a, b = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    return f"{a:7.2f} {b:7.2f} {b / a:7.2f}"


def seconds(call: Call) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
