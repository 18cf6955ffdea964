"""Scores and distances against the gain of transfer: a scatter of targets, and a forest plot of correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tl_lightning.errors import UserError
from tl_lightning.study.intervals import Interval
from tl_lightning.study.plots.frames import MAX_ROWS
from tl_lightning.study.plots.labels import place_labels
from tl_lightning.study.plots.style import (
    COLOURS,
    MARKERS,
    UNDECIDED,
    data_limits,
    dress,
    mark_cut_ends,
    new_figure,
    wrap,
)


def named_points(points: pd.DataFrame, xlabel: str, ylabel: str, title: str = "") -> Figure:
    """Draw points with intervals both ways and a name beside each, coloured by group.

    Args:
        points: A row each with ``name``, ``group``, ``x``, ``x_low``, ``x_high``, ``y``, ``y_low``, ``y_high``; bounds
            may be missing (nan).
        xlabel: Text of the horizontal axis, with its unit.
        ylabel: Text of the vertical axis, with its unit.
        title: What stands above, small.
    """
    if points.empty:
        raise UserError("no point to draw")
    figure = new_figure(8.0, 5.4)
    axes = figure.add_subplot()
    axes.set_xlim(*data_limits(points["x"], points["x_low"], points["x_high"]))
    axes.set_ylim(*data_limits([*points["y"], 0.0], points["y_low"], points["y_high"]))
    axes.axhline(0, color="#333333", linewidth=1, zorder=1)
    colours = []
    for number, (group, rows) in enumerate(points.groupby("group", sort=False)):
        colour = COLOURS[number % len(COLOURS)]
        colours += [colour] * len(rows)
        axes.errorbar(
            rows["x"],
            rows["y"],
            xerr=_distances(rows, "x"),
            yerr=_distances(rows, "y"),
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=7,
            elinewidth=1.0,
            linestyle="none",
            label=str(group),
            zorder=3,
        )
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=9, loc="left", color="#555555")
    mark_cut_ends(axes)
    dress(axes)
    if points["group"].nunique() > 1:
        figure.legend(loc="outside right upper", fontsize=9, frameon=False, title="variants of")
    ordered = pd.concat([rows for _, rows in points.groupby("group", sort=False)])
    upright = ordered[["x", "y_low", "x", "y_high"]].to_numpy(dtype=float)
    level = ordered[["x_low", "y", "x_high", "y"]].to_numpy(dtype=float)
    lines = [line for line in np.concatenate([upright, level]) if np.isfinite(line).all()]
    texts = [wrap(str(name), 22) for name in ordered["name"]]
    place_labels(axes, ordered[["x", "y"]].to_numpy(dtype=float), texts, lines, colours=colours)
    return figure


def correlation_forest(rows: Mapping[str, Mapping[str, Interval]], xlabel: str, series: Sequence[str]) -> Figure:
    """Draw correlations with their intervals against zero, several series a row; hollow where the interval holds 0.

    Args:
        rows: By name, from top to bottom, the correlation of each series; one may be missing.
        xlabel: Text of the horizontal axis.
        series: Names of the series, in the order of their colours.
    """
    rows = dict(list(rows.items())[:MAX_ROWS])
    if not rows:
        raise UserError("no correlation to draw")
    figure = new_figure(8.0, 1.5 + 0.55 * len(rows))
    axes = figure.add_subplot()
    axes.axvline(0, color="#333333", linewidth=1)
    step = 0.5 / max(len(series), 1)
    for number, name in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([], [], color=colour, marker=MARKERS[number % len(MARKERS)], linestyle="none", label=name)
        for place, found in enumerate(rows.values()):
            if name not in found:
                continue
            interval, y = found[name], place + (number - (len(series) - 1) / 2) * step
            decided = interval.low > 0 or interval.high < 0
            axes.errorbar(
                interval.mean,
                y,
                xerr=np.nan_to_num([[interval.mean - interval.low], [interval.high - interval.mean]]),
                color=colour,
                marker=MARKERS[number % len(MARKERS)],
                markersize=6.5,
                markerfacecolor=colour if decided else "white",
                elinewidth=1.8,
            )
            axes.text(
                1.02,
                y,
                f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}], n = {interval.n}",
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=8,
                color=colour if decided else UNDECIDED,
            )
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [wrap(name, 30) for name in rows])
    axes.set_xlabel(xlabel)
    figure.legend(loc="outside upper left", fontsize=9, frameon=False, ncols=len(series))
    dress(axes, "x")
    return figure


def _distances(rows: pd.DataFrame, side: str) -> np.ndarray:
    """Return the intervals as distances [2, n] from the points; 0 where there is none."""
    distances = [rows[side] - rows[f"{side}_low"], rows[f"{side}_high"] - rows[side]]
    return np.nan_to_num(np.array(distances, dtype=float)).clip(min=0)
