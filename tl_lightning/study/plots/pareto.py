"""Cost against value: which arms no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tl_lightning.study.plots.frames import (
    draw_chance,
    ended,
    error_bars,
    evenly,
    means,
    ordered,
    seeds_text,
    value_limits,
)
from tl_lightning.study.plots.labels import place_labels
from tl_lightning.study.plots.style import (
    COLOURS,
    MARKERS,
    UNDECIDED,
    axis_text,
    dress,
    log_axis,
    mark_cut_ends,
    new_figure,
    scaled,
    spans_decades,
    wrap,
)

MAX_LABELS = 25  # with more arms only the front is named
_RING = 160.0  # square points: round a marker, and nearer to it than any label


def pareto(
    results: pd.DataFrame,
    cost: str = "train_seconds",
    value: str = "test_accuracy",
    order: Sequence[object] | None = None,
    chance: float | None = None,
) -> Figure:
    """Draw every arm by cost and value, with 95 % intervals both ways and the Pareto front of the means.

    Args:
        results: A trial a row; failed trials are left out.
        cost: Column on the horizontal axis, less is better; logarithmic where it spans more than a factor of 10.
        value: Column on the vertical axis, more is better.
        order: Arms in the order of their colours; by default as they come.
        chance: Drawn as a dotted line: the value of a model that gives every image the same answer, as in the results.
    """
    results = ended(ended(results, cost), value)
    order = ordered(results, "arm", order)
    results = results[results["arm"].isin(order)]
    x, y = means(results, "arm", order, cost), means(results, "arm", order, value)
    figure = new_figure(8.0, 5.4)
    axes = figure.add_subplot()
    log = spans_decades(x["mean"].to_numpy())
    limits = value_limits(results[cost], cost, x, log)
    if log:
        log_axis(axes, *limits)
    axes.set_xlim(limits[0] if log else max(limits[0], 0.0), limits[1])  # no cost is below 0, whatever its interval
    axes.set_ylim(*value_limits(results[value], value, y, chance=chance))
    draw_chance(axes, chance, value)
    points = np.column_stack([x["mean"], y["mean"]])
    front = pareto_front(points[:, 0], points[:, 1])
    shown = list(range(len(x))) if len(x) <= MAX_LABELS else evenly(front.tolist(), MAX_LABELS)
    rest = np.delete(points, shown, axis=0)
    axes.scatter(rest[:, 0], rest[:, 1], s=10, color=UNDECIDED, alpha=0.5, linewidths=0, zorder=2)
    _draw_arms(axes, x.iloc[shown], y.iloc[shown])
    steps = _steps(points[front])
    axes.plot(*steps.T, color="#999999", linewidth=1.2, linestyle="--", zorder=1)
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": "#333333", "linewidths": 1.2, "zorder": 4}
    axes.scatter(points[front, 0], points[front, 1], s=_RING, **ring)
    axes.set_xlabel(axis_text(cost) + (", logarithmic" if log else ""))
    axes.set_ylabel(axis_text(value))
    title = seeds_text(results) + "; ringed: Pareto front of the means"
    axes.set_title(title, fontsize=9, loc="left", color="#555555")
    mark_cut_ends(axes)
    dress(axes)
    lines = [*np.hstack([steps[:-1], steps[1:]]), *_bars(x.iloc[shown], y.iloc[shown])]
    if chance is not None:
        level = float(scaled(chance, value))
        lines.append(np.array([limits[0], level, limits[1], level]))
    place_labels(axes, points[shown], [wrap(str(arm), 24) for arm in x.index[shown]], lines)
    return figure


def pareto_front(cost: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the positions that no other beats in both, by rising cost."""
    by_cost = np.lexsort((-value, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], value[by_cost][:-1]]))
    return by_cost[value[by_cost] > best]


def _draw_arms(axes: Axes, x: pd.DataFrame, y: pd.DataFrame) -> None:
    for number, (across, upward) in enumerate(zip(error_bars(x).T, error_bars(y).T, strict=True)):
        axes.errorbar(
            x["mean"].iloc[number],
            y["mean"].iloc[number],
            xerr=across[:, None],
            yerr=upward[:, None],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
            markersize=7,
            elinewidth=1.0,
            zorder=3,
        )


def _bars(x: pd.DataFrame, y: pd.DataFrame) -> list[NDArray[np.float64]]:
    """Return the intervals as lines [x0, y0, x1, y1], for labels to keep clear of."""
    across = np.column_stack([x["low"], y["mean"], x["high"], y["mean"]])
    upward = np.column_stack([x["mean"], y["low"], x["mean"], y["high"]])
    return [line for line in np.concatenate([across, upward]) if np.isfinite(line).all()]


def _steps(front: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners of the staircase through the points [n, 2]: each value holds until the next cost."""
    corners = np.column_stack([front[1:, 0], front[:-1, 1]])
    return np.concatenate([np.stack([front[:-1], corners], axis=1).reshape(-1, 2), front[-1:]])
