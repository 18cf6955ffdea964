"""A metric against the values of a factor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tl_lightning.study.plots.frames import (
    MAX_ROWS,
    draw_chance,
    ended,
    error_bars,
    evenly,
    means,
    ordered,
    seeds_text,
    value_limits,
)
from tl_lightning.study.plots.style import COLOURS, MARKERS, axis_text, dress, mark_cut_ends, new_figure, scaled, wrap


def accuracy_against_factor(
    results: pd.DataFrame,
    order: Sequence[object] | None = None,
    *,
    metric: str = "test_accuracy",
    factor: str = "arm",
    series: str | None = None,
    factor_text: str | None = None,
    apart: Collection[object] = (),
    chance: float | None = None,
) -> Figure:
    """Draw a metric against the values of a factor: mean, 95 % interval, and the single seeds as small dots.

    Args:
        results: A trial a row, with `status`, `seed` and the named columns; failed trials are left out.
        order: Values of the factor from left to right; by default as they come.
        metric: Column on the vertical axis.
        factor: Column on the horizontal axis.
        series: Column whose values are drawn as lines of their own, for example with and without something.
        factor_text: Text under the horizontal axis.
        apart: Values outside the order (a schedule among depths, for example): no line leads to them.
        chance: Drawn as a dotted line: the metric of a model that gives every image the same answer, as in the results.
    """
    results = ended(results, metric)
    order = evenly(ordered(results, factor, order), MAX_ROWS)
    results = results[results[factor].isin(order)]
    places = {value: place for place, value in enumerate(order)}
    groups = {"": results} if series is None else {str(name): rows for name, rows in _by(results, series)}
    figure = new_figure(max(8.0, 0.7 * len(order)), 5.0)
    axes = figure.add_subplot()
    drawn = []
    for number, (name, rows) in enumerate(groups.items()):
        summary = means(rows, factor, order, metric)
        shift = (number - (len(groups) - 1) / 2) * min(0.18, 0.5 / len(groups))
        x = np.array([places[value] for value in summary.index]) + shift
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "label": name}
        _draw_means(axes, x, summary, style)
        in_order = ~summary.index.isin(list(apart))
        axes.plot(x[in_order], summary["mean"][in_order], color=style["color"], linewidth=1, zorder=2)
        _draw_seeds(axes, rows, metric, [places[value] + shift for value in rows[factor]], style["color"])
        drawn.append(summary)
    axes.set_ylim(*value_limits(results[metric], metric, pd.concat(drawn), chance=chance))
    draw_chance(axes, chance, metric)
    _category_labels(axes, [str(value) for value in order], figure.get_figwidth())
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.set_xlabel(factor_text or ("" if factor == "arm" else axis_text(factor)))
    axes.set_ylabel(axis_text(metric))
    axes.set_title(seeds_text(results), fontsize=9, loc="left", color="#555555")
    mark_cut_ends(axes)
    dress(axes, "y")
    if series is not None:
        figure.legend(loc="outside upper center", ncols=min(4, len(groups)), frameon=False, fontsize=9)
    return figure


def _by(results: pd.DataFrame, series: str) -> list[tuple[object, pd.DataFrame]]:
    return list(results.groupby(series, sort=False, dropna=False))


def _draw_means(axes: Axes, x: NDArray[np.float64], summary: pd.DataFrame, style: dict[str, Any]) -> None:
    bars = error_bars(summary)
    axes.errorbar(
        x, summary["mean"], bars, markersize=7, linestyle="none", elinewidth=1.8, capsize=3, zorder=3, **style
    )


def _draw_seeds(axes: Axes, rows: pd.DataFrame, metric: str, places: Sequence[float], colour: str) -> None:
    """Draw each trial as a small dot; a seed stands at the same side of the mean in every arm."""
    seeds = sorted(rows["seed"].unique())
    spread = np.linspace(-0.06, 0.06, len(seeds)) if len(seeds) > 1 else [0.0]
    x = np.array(places) + [spread[seeds.index(seed)] for seed in rows["seed"]]
    axes.scatter(x, scaled(rows[metric], metric), s=12, color=colour, alpha=0.45, linewidths=0, zorder=2)


def _category_labels(axes: Axes, labels: Sequence[str], width: float) -> None:
    """Write the labels under the axes: level where they fit into the width in inches, else slanted."""
    level = [wrap(label, 14) for label in labels]
    longest = max(len(line) for label in level for line in label.split("\n"))
    axes.set_xticks(range(len(labels)), level)
    if 0.08 * longest * len(labels) > width - 1.0:
        slanted = [wrap(label, 24) for label in labels]
        axes.set_xticks(range(len(labels)), slanted, rotation=35, ha="right", rotation_mode="anchor")
