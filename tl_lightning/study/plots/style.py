"""How the figures of all studies look: colours, markers, axis texts, limits."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

# Okabe & Ito 2008, told apart with any colour vision; grey stands in for their yellow, too faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 3)), (0, (7, 2)), (0, (2, 1, 1, 1)))
HIGHER, LOWER, UNDECIDED = "#0072B2", "#D55E00", "#7F7F7F"

_TEXTS = {
    "train_seconds": "Training time (s)",
    "wall_seconds": "Time of the trial (s)",
    "seconds": "Training time (s)",
    "time/train_seconds": "Training time (s)",
    "images_per_second": "Throughput (images/s)",
    "peak_memory_mb": "Peak memory (MB)",
    "trainable_parameters": "Trainable parameters",
    "total_parameters": "Parameters",
    "forward_flops": "Forward pass (FLOPs an image)",
    "backward_flops": "Backward pass (FLOPs an image)",
    "samples_per_class": "Training images a class",
    "gmacs": "Multiply-adds of an image (GMACs)",
    "latency_ms": "Latency of one image (ms)",
    "throughput": "Images a second in use",
    "training_gflops": "Operations of the whole training (GFLOPs)",
    "training_step_ms": "Training step (ms)",
    "step_memory_mb": "Memory of a step (MiB)",
    "epoch": "Epoch",
}
_PARTS = {
    "val": "validation",
    "train": "training",
    "auroc": "AUROC",
    "f1": "F1",
    "ece": "calibration error",
    "map": "mAP",
    "miou": "mIoU",
}


def new_figure(width: float = 8.0, height: float = 5.0) -> Figure:
    """Return an empty figure with its own canvas (no pyplot state); 8 inches at 100 dpi are 800 pixels."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, grid: str = "both") -> None:
    """Remove the frame's upper and right side and draw a faint grid on `x`, `y` or `both`."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, color="#DDDDDD", linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def is_percentage(metric: str) -> bool:
    """Return whether the metric is a share that is drawn in percent."""
    return metric.rpartition("accuracy")[1] != ""


def scaled(values: ArrayLike, metric: str) -> NDArray[np.float64]:
    """Return the values in the unit that `axis_text` names."""
    return np.asarray(values, dtype=float) * (100.0 if is_percentage(metric) else 1.0)


def axis_text(metric: str) -> str:
    """Return a metric's name as words with its unit: ``val/accuracy`` is ``Validation accuracy (%)``."""
    if metric in _TEXTS:
        return _TEXTS[metric]
    words = [_PARTS.get(word, word) for word in re.split(r"[/_ ]+", metric)]
    text = " ".join(words)
    return text[:1].upper() + text[1:] + (" (%)" if is_percentage(metric) else "")


def wrap(text: str, width: int = 20) -> str:
    """Return the text in lines of at most `width` characters, where spaces allow."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def data_limits(values: ArrayLike, low: ArrayLike, high: ArrayLike, log: bool = False) -> tuple[float, float]:
    """Return axis limits that hold all values, and their intervals unless these are many times wider.

    With two seeds a 95 % interval is some 13 standard deviations wide to each side: it runs out of the axes then.
    """
    inside = np.asarray(values, dtype=float)
    inside = inside[np.isfinite(inside)]
    bounds = np.concatenate([np.ravel(low), np.ravel(high)]).astype(float)
    bounds = bounds[np.isfinite(bounds)]
    if log:
        inside, bounds = np.log10(inside), np.log10(bounds[bounds > 0])
    least, most = float(inside.min()), float(inside.max())
    room = max(0.7 * (most - least), 0.02 * max(abs(most), abs(least)), 1e-9)
    least = max(min(least, bounds.min(initial=least)), least - room)
    most = min(max(most, bounds.max(initial=most)), most + room)
    pad = 0.06 * (most - least) or 0.5 * room
    limits = (least - pad, most + pad)
    return (10 ** limits[0], 10 ** limits[1]) if log else limits


def spans_decades(values: Sequence[float] | NDArray[np.float64], ratio: float = 10.0) -> bool:
    """Return whether positive values differ by more than the ratio, so that a logarithmic axis is due."""
    array = np.asarray(values, dtype=float)
    array = array[np.isfinite(array)]
    return bool(len(array)) and bool(array.min() > 0) and bool(array.max() / array.min() > ratio)


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Make the horizontal axis logarithmic from low to high, with plain numbers at 1, 2, 5 or at the decades."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick_text))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _tick_text(value: float, position: int | None = None) -> str:
    return compact(value)


def compact(number: float) -> str:
    """Return a number in three digits with k, M, G or T."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            return f"{number / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
