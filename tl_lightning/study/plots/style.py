"""How the figures of all studies look: colours, markers, axis texts, limits."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWN, CARETLEFT, CARETRIGHT, CARETUP
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from tl_lightning.study.intervals import MIN_SEEDS

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
    "images_seen": "Training images seen",
    "train/clean_accuracy": "Accuracy on clean training images (%)",
    "val_knn_accuracy": "Validation accuracy of 5 nearest neighbours (%)",
    "val_probe_accuracy": "Validation accuracy of a linear probe (%)",
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
_UNITS = {"accuracy": "%", "ece": "points"}  # of shares, by the last word of their name
_AT_LEAST_0 = frozenset({"loss", "ece", "auroc", "f1", "map", "miou", "cka", "drift", "share"})
_CUT = "cut end"
_HEADS = ((CARETLEFT, CARETRIGHT), (CARETDOWN, CARETUP))
_CUT_TEXT = "arrow: interval goes on"
_TITLE = 58  # characters beside each other over a panel


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


def unit(metric: str) -> str:
    """Return ``%`` or ``points`` for a share that is drawn times 100, else nothing."""
    return "%" if "accuracy" in metric else _UNITS.get(_words(metric)[-1], "")


def scaled(values: ArrayLike, metric: str) -> NDArray[np.float64]:
    """Return the values in the unit that `axis_text` names."""
    return np.asarray(values, dtype=float) * (100.0 if unit(metric) else 1.0)


def never_negative(metric: str) -> bool:
    """Return whether the metric has no values below 0, so that an axis below 0 would show nothing."""
    return not _AT_LEAST_0.isdisjoint(word.lower() for word in _words(metric))


def _words(metric: str) -> list[str]:
    return re.split(r"[/_ ]+", metric)


def axis_text(metric: str) -> str:
    """Return a metric's name as words with its unit: ``val/accuracy`` is ``Validation accuracy (%)``.

    A name with blanks is words already: the *map* of a sentence is no mAP.
    """
    if metric in _TEXTS:
        return _TEXTS[metric]
    text = metric if " " in metric else " ".join(_PARTS.get(word, word) for word in _words(metric))
    return text[:1].upper() + text[1:] + (f" ({unit(metric)})" if unit(metric) else "")


def wrap(text: str, width: int = 20) -> str:
    """Return the text in lines of at most `width` characters, where spaces allow."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def wrap_at_commas(text: str, width: int) -> str:
    """Return the text in lines that end at its commas where these are short enough, so that like names break alike."""
    lines = text.replace(", ", ",\n")
    fits = max(map(len, lines.split("\n"))) <= width < len(text)
    return lines if fits else wrap(text, width)


def data_limits(
    values: ArrayLike, low: ArrayLike, high: ArrayLike, log: bool = False, n: ArrayLike | None = None
) -> tuple[float, float]:
    """Return axis limits that hold all values, and their intervals unless these are many times wider.

    With two seeds a 95 % interval is some 13 standard deviations wide to each side: it runs out of the axes then, and
    `mark_cut_ends` says so. On a logarithmic axis one that nears 0 would take decades, so it may be cut as well.

    Args:
        values: What must lie within the limits.
        low: Lower ends of intervals, nan where there is none.
        high: Upper ends.
        log: The axis is logarithmic.
        n: Values behind each interval: those of `MIN_SEEDS` or more are held whole, except on a logarithmic axis.
    """
    bounds = np.stack([np.ravel(low), np.ravel(high)]).astype(float)
    whole = bounds[:, np.ravel(n) >= MIN_SEEDS] if n is not None and not log else bounds[:, :0]
    inside = np.concatenate([np.ravel(np.asarray(values, dtype=float)), whole.ravel()])
    inside, bounds = inside[np.isfinite(inside)], bounds[np.isfinite(bounds)]
    if log:
        inside, bounds = np.log10(inside), np.log10(bounds[bounds > 0])
    least, most = float(inside.min()), float(inside.max())
    room = max(0.7 * (most - least), 0.02 * max(abs(most), abs(least)), 1e-9)
    least = max(min(least, bounds.min(initial=least)), least - room)
    most = min(max(most, bounds.max(initial=most)), most + room)
    pad = 0.06 * (most - least) or 0.5 * room
    limits = (least - pad, most + pad)
    return (10 ** limits[0], 10 ** limits[1]) if log else limits


def mark_cut_ends(axes: Axes) -> None:
    """Draw an arrow head at the frame where an interval goes on beyond it, and say so in the title.

    To be called when the limits are final; called again, it replaces what it drew.
    """
    for old in axes.findobj(lambda artist: artist.get_gid() == _CUT):
        old.remove()
    containers = [found for found in axes.containers if isinstance(found, ErrorbarContainer)]
    bars = [bar for container in containers for bar in container.lines[2]]
    cut = sum(_mark_ends(axes, segment, bar) for bar in bars for segment in bar.get_segments())
    title = axes.get_title(loc="left").replace(_CUT_TEXT, "").rstrip("; \n")
    parts = [part for part in (title, _CUT_TEXT if cut else "") if part]
    between = "; " if len("; ".join(parts)) <= _TITLE else ";\n"
    axes.set_title(between.join(parts), fontsize=9, loc="left", color="#555555")


def _mark_ends(axes: Axes, segment: NDArray[np.float64], bar: LineCollection) -> int:
    """Mark the ends of an upright or level bar that lie outside the frame, and return how many there are."""
    along = int(segment[0, 0] == segment[1, 0])  # 0 level, 1 upright
    limits = np.sort([axes.get_xlim(), axes.get_ylim()], axis=1)
    (low, high), (start, stop), across = limits[along], np.sort(segment[:, along]), segment[0, 1 - along]
    if not (start < high and stop > low and limits[1 - along, 0] <= across <= limits[1 - along, 1]):
        return 0
    cut = [(low, _HEADS[along][0])] * bool(start < low) + [(high, _HEADS[along][1])] * bool(stop > high)
    for end, head in cut:
        point = (across, end) if along else (end, across)
        axes.plot(
            *point, marker=head, color=bar.get_color()[0], markersize=7, clip_on=False, gid=_CUT, zorder=4,
            scalex=False, scaley=False,
        )  # fmt: skip
    return len(cut)


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
