"""A metric against a number, such as images a class: a line for each series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_lightning.study.plots.frames import draw_chance, ended, error_bars, means, ordered, seeds_text, value_limits
from tl_lightning.study.plots.style import (
    COLOURS,
    LINES,
    MARKERS,
    axis_text,
    compact,
    data_limits,
    dress,
    mark_cut_ends,
    new_figure,
    scaled,
    spans_decades,
)
from tl_lightning.study.statistics import Comparison


def metric_against_number(
    results: pd.DataFrame,
    number: str,
    series: str = "arm",
    *,
    metric: str = "test_accuracy",
    order: Sequence[object] | None = None,
    number_text: str | None = None,
    metric_text: str | None = None,
    log: bool | None = None,
    chance: float | None = None,
) -> Figure:
    """Draw the mean of a metric against a number with 95 % intervals and the single seeds as small dots.

    Args:
        results: A trial a row, with `status`, `seed` and the named columns; failed trials are left out.
        number: Column of numbers on the horizontal axis.
        series: Column whose values are lines of their own.
        metric: Column on the vertical axis.
        order: Values of ``series`` in the order of their colours.
        number_text: Text under the horizontal axis.
        metric_text: Text beside the vertical axis.
        log: Logarithmic horizontal axis; by default where the numbers differ by more than a factor of 4.
        chance: Drawn as a dotted line: the metric of a model that gives every image the same answer, as in the results.
    """
    results = ended(ended(results, metric), number)
    names = ordered(results, series, order)
    results = results[results[series].isin(names)]
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    levels = sorted(results[number].unique())
    log = spans_decades(levels, 4.0) if log is None else log
    summaries = []
    for place, name in enumerate(names):
        rows = results[results[series] == name]
        summary = means(rows, number, levels, metric)
        x = _apart(summary.index.to_numpy(dtype=float), levels, place, len(names), log)
        _line(axes, x, summary, place, str(name))
        moved = dict(zip(summary.index, x, strict=True))
        dots = [moved[value] for value in rows[number]]
        axes.scatter(dots, scaled(rows[metric], metric), s=10, color=_colour(place), alpha=0.4, linewidths=0, zorder=2)
        summaries.append(summary)
    _number_axis(axes, levels, log, number_text or axis_text(number))
    axes.set_ylim(*value_limits(results[metric], metric, pd.concat(summaries), chance=chance))
    draw_chance(axes, chance, metric)
    axes.set_ylabel(metric_text or axis_text(metric))
    _finish(figure, axes, len(names), seeds_text(results))
    return figure


def gains_against_number(
    gains: Mapping[str, Mapping[float, Comparison]],
    *,
    number_text: str,
    gain_text: str,
    factor: float = 100,
    log: bool | None = None,
) -> Figure:
    """Draw paired differences against a number with their 95 % intervals; 0 is no difference.

    Args:
        gains: For each series the comparison at each level.
        number_text: Text under the horizontal axis.
        gain_text: Text beside the vertical axis, with its unit.
        factor: Multiplies the differences: 100 for points.
        log: Logarithmic horizontal axis; by default where the numbers differ by more than a factor of 4.
    """
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    levels = sorted({level for by in gains.values() for level in by})
    log = spans_decades(levels, 4.0) if log is None else log
    frames = []
    for place, (name, by) in enumerate(gains.items()):
        rows = [by[level].difference.scaled(factor) for level in sorted(by)]
        frame = pd.DataFrame([[r.mean, r.low, r.high, r.n] for r in rows], columns=["mean", "low", "high", "n"])
        x = _apart(np.array(sorted(by), dtype=float), levels, place, len(gains), log)
        _line(axes, x, frame, place, name)
        frames.append(frame)
    every = pd.concat(frames)
    axes.axhline(0, color="#555555", linewidth=1, zorder=1)
    _number_axis(axes, levels, log, number_text)
    axes.set_ylim(*data_limits([*every["mean"], 0.0], every["low"], every["high"], n=every["n"]))
    axes.set_ylabel(gain_text)
    seeds = max((c.n for by in gains.values() for c in by.values()), default=0)
    _finish(figure, axes, len(gains), f"paired difference, mean and 95 % interval, {seeds} seed{'s' * (seeds != 1)}")
    return figure


def _line(axes: Axes, x: np.ndarray, summary: pd.DataFrame, place: int, name: str) -> None:
    axes.errorbar(
        x,
        summary["mean"],
        error_bars(summary),
        color=_colour(place),
        marker=MARKERS[place % len(MARKERS)],
        linestyle=LINES[place % len(LINES)],
        linewidth=1.4,
        elinewidth=1.4,
        capsize=3,
        markersize=6,
        label=name,
        zorder=3,
    )


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _apart(x: np.ndarray, levels: Sequence[float], place: int, count: int, log: bool) -> np.ndarray:
    """Move the points of one series a little to the side, so that intervals do not cover each other."""
    shift = (place - (count - 1) / 2) * min(0.05, 0.3 / count)
    if len(levels) < 2:
        return x + shift * 0.1 * max(abs(x).max(), 1.0)
    steps = np.diff(np.log(levels)) if log else np.diff(np.asarray(levels, dtype=float))
    return x * np.exp(shift * steps.min()) if log else x + shift * steps.min()


def _number_axis(axes: Axes, levels: Sequence[float], log: bool, text: str) -> None:
    if log:
        axes.set_xscale("log")
    axes.set_xticks(list(levels), [compact(level) for level in levels])
    axes.minorticks_off()
    axes.set_xlabel(text + (", logarithmic" if log else ""))


def _finish(figure: Figure, axes: Axes, series: int, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left", color="#555555")
    mark_cut_ends(axes)
    dress(axes)
    if series > 1:
        longest = max(len(label) for label in axes.get_legend_handles_labels()[1])
        columns = int(figure.get_figwidth() / (0.08 * longest + 0.6))  # in inches
        figure.legend(loc="outside upper center", ncols=max(1, min(4, series, columns)), frameon=False, fontsize=9)
