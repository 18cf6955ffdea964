"""When each arm reaches a target, those that never do among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_lightning.errors import UserError
from tl_lightning.study.intervals import Interval
from tl_lightning.study.plots.frames import MAX_ROWS, evenly, ordered
from tl_lightning.study.plots.style import HIGHER, LOWER, UNDECIDED, data_limits, dress, log_axis, new_figure, wrap

_PLAIN = "#333333"


def target_times(
    times: pd.DataFrame,
    order: Sequence[str] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    text_heading: str = "speed-up",
    ratios: Mapping[str, Interval] | None = None,
    reference: str | None = None,
    cost: str = "seconds",
    cost_text: str = "Seconds of training to the target",
) -> Figure:
    """Draw the cost to the target: a dot a seed, a bar at the geometric mean, an open triangle where it was not met.

    Args:
        times: Columns ``arm``, ``seed``, ``reached`` and the cost: to the target, or of all training.
        order: Arms from top to bottom; by default as they come.
        texts: What is written beside an arm, such as its speed-up.
        text_heading: What stands above it.
        ratios: Interval of an arm's speed-up over the reference: blue above 1, orange below, grey where it holds 1.
        reference: Arm whose mean is drawn as a line.
        cost: Column on the horizontal axis, which is logarithmic.
        cost_text: Text under it.
    """
    if times.empty:
        raise UserError("no time to a target to draw: no trial has one")
    arms = [str(arm) for arm in evenly(ordered(times, "arm", order), MAX_ROWS)]
    figure = new_figure(9.0, 1.4 + 0.36 * len(arms))
    axes = figure.add_subplot()
    shown = times[times["arm"].isin(arms)]
    none = np.array([])
    log_axis(axes, *data_limits(shown[cost], none, none, log=True))
    means = {arm: float(np.exp(np.log(shown.loc[shown["arm"] == arm, cost]).mean())) for arm in arms}
    if reference in means:
        axes.axvline(means[reference], color="#999999", linewidth=1, linestyle="--", zorder=1)
    for row, arm in enumerate(arms):
        own = shown[shown["arm"] == arm]
        reached = own["reached"].to_numpy(dtype=bool)
        colour = _colour((ratios or {}).get(arm), bool(reached.all()))
        _draw_seeds(axes, row, own[cost].to_numpy(), reached, colour)
        if reached.all():
            axes.plot([means[arm]] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.4, zorder=2)
        if texts and arm in texts:
            place = axes.get_yaxis_transform()
            axes.text(1.02, row, texts[arm], transform=place, va="center", fontsize=9, color=colour)
    if texts:
        axes.text(1.02, 1.0, text_heading, transform=axes.transAxes, va="bottom", fontsize=9, color="#555555")
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_yticks(range(len(arms)), [wrap(arm, 34) for arm in arms])
    axes.set_xlabel(f"{cost_text}, logarithmic")
    title = "dots: seeds; bar: geometric mean; open triangle: not reached by the end of training"
    title += "\nby the interval of the speed-up: blue quicker, orange slower, grey not decided" if ratios else ""
    # above the whole figure: over the axes it would run into the heading of the texts
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#555555")
    dress(axes, "x")
    return figure


def _draw_seeds(axes: Axes, row: int, costs: np.ndarray, reached: np.ndarray, colour: str) -> None:
    """Draw an arm's seeds beside each other: dots, open triangles where the target was not met."""
    places = row + (np.linspace(-0.12, 0.12, len(costs)) if len(costs) > 1 else np.zeros(1))
    axes.scatter(costs[reached], places[reached], s=22, color=colour, linewidths=0, zorder=3)
    missed: dict[str, Any] = {"marker": ">", "facecolors": "white", "edgecolors": colour}
    axes.scatter(costs[~reached], places[~reached], s=34, zorder=3, **missed)


def _colour(ratio: Interval | None, reached: bool) -> str:
    """Return the colour of an arm; what never got there has an upper bound alone, which shows no gain."""
    if ratio is None:
        return _PLAIN
    if ratio.high < 1:
        return LOWER
    return HIGHER if ratio.low > 1 and reached else UNDECIDED
