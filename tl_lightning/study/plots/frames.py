"""What all figures take from a table: the trials that ended, means with intervals, axis limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tl_lightning.errors import UserError
from tl_lightning.study.intervals import MIN_SEEDS, t_half_width
from tl_lightning.study.plots.style import data_limits, never_negative, scaled, unit

T = TypeVar("T")
MAX_ROWS = 40  # more arms or comparisons than this cannot be read in one figure


def ended(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the trials that ended well and have the metric."""
    if metric not in results:
        raise UserError(f"no column {metric!r} to draw; there are {', '.join(map(str, results.columns))}")
    keep = results[metric].notna()
    if "status" in results:
        keep &= results["status"] == "ok"
    if not keep.any():
        raise UserError(f"no trial that ended well has {metric}, nothing to draw")
    return results[keep]


def ordered(frame: pd.DataFrame, column: str, order: Sequence[object] | None) -> list[object]:
    """Return the column's values in the order asked for, those that do not occur left out."""
    present = dict.fromkeys(frame[column])
    return list(present) if order is None else [value for value in order if value in present]


def evenly(values: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, most).round().astype(int)]


def means(rows: pd.DataFrame, column: str, order: Sequence[object], metric: str) -> pd.DataFrame:
    """Return mean, low, high (95 %, nan with one trial) and n by the column's values.

    The rows stand in the order given, the numbers in the unit that the axis names.
    """
    groups = pd.Series(scaled(rows[metric], metric)).groupby(rows[column].to_numpy(), sort=False)
    mean, n = groups.mean(), groups.count()
    half = t_half_width(groups.std(), n)
    frame = pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half, "n": n})
    return frame.loc[[value for value in order if value in frame.index]]


def error_bars(summary: pd.DataFrame) -> NDArray[np.float64]:
    """Return the intervals as distances [2, n] from the means; 0 where there is none."""
    distances = [summary["mean"] - summary["low"], summary["high"] - summary["mean"]]
    return np.nan_to_num(np.array(distances, dtype=float))


def value_limits(
    values: Iterable[float], metric: str, summary: pd.DataFrame, log: bool = False, chance: float | None = None
) -> tuple[float, float]:
    """Return limits of an axis that shows the metric: all values and sensible intervals, but no impossible values.

    Args:
        values: Of the metric, as in the results.
        metric: Its name.
        summary: What `means` made of the trials.
        log: The axis is logarithmic.
        chance: A further value, for `draw_chance`.
    """
    held = scaled([*values, *([] if chance is None else [chance])], metric)
    low, high = data_limits(held, summary["low"], summary["high"], log, summary["n"])
    if unit(metric) == "%":
        return max(low, -1.0), min(high, 101.0)  # room for dots at 0 and at 100
    return (max(low, 0.0) if never_negative(metric) else low), high


def draw_chance(axes: Axes, chance: float | None, metric: str) -> None:
    """Draw what a model reaches that gives every image the same answer, named on the right of the frame."""
    if chance is None:
        return
    level, colour = float(scaled(chance, metric)), "#777777"
    axes.axhline(level, color=colour, linewidth=1.2, linestyle=":", zorder=1)
    place = axes.get_yaxis_transform()
    axes.text(1.01, level, "one answer\nfor all", transform=place, va="center", fontsize=8, color=colour)


def seeds_text(results: pd.DataFrame, interval: bool = True) -> str:
    """Return how many seeds stand behind a figure, and whether it shows their interval."""
    seeds = results["seed"].nunique()
    if seeds == 1:
        return "1 seed, anecdotal: no interval"
    shown = "mean and 95 % interval" if interval else "mean"
    return f"{shown}, {seeds} seeds" + (", anecdotal" if seeds < MIN_SEEDS else "")
