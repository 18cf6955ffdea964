"""Print what DepthwiseGradients takes against oneDNN's weight gradient, by kernel, map side and batch.

python tests/benchmarks/depthwise.py [--batches 8 32] [--kernels 3 5 7] [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tl_lightning.depthwise import LARGEST_PAIRS, depthwise_weight_gradient

SIDES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14)
PIXELS = 4608  # of one image's maps, over all channels


def main() -> None:
    """Measure in turn, channels last, and print the medians in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--kernels", type=int, nargs="+", default=[3, 5, 7])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, channels last; ms")
    print("batch kernel side channels  oneDNN     own   ratio  at most 36 x 36 pairs")
    for batch in options.batches:
        for kernel in options.kernels:
            for side in SIDES:
                measure(batch, kernel, side, options.repeats)


def measure(batch: int, kernel: int, side: int, repeats: int) -> None:
    """Print one line."""
    channels = min(1152, 4 * PIXELS // side**2)
    weight = torch.randn(channels, 1, kernel, kernel)
    maps, grad = (
        torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    padding = [kernel // 2] * 2

    def onednn() -> Tensor:
        return torch.ops.aten.convolution_backward(
            grad, maps, weight, None, [1, 1], padding, [1, 1], False, [0, 0], channels, [False, True, False]
        )[1]

    def own() -> Tensor:
        return depthwise_weight_gradient(maps, grad, [kernel, kernel], [1, 1], padding)

    torch.testing.assert_close(own(), onednn(), rtol=1e-3, atol=1e-2)
    times = [(seconds(onednn), seconds(own)) for _ in range(repeats)]
    theirs, ours = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    few = "yes" if side**4 <= LARGEST_PAIRS else "no"
    print(
        f"{batch:5} {kernel:6} {side:4} {channels:8} {theirs:7.2f} {ours:7.2f} {ours / theirs:7.2f}  {few}", flush=True
    )


def seconds(call: Callable[[], Tensor]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
