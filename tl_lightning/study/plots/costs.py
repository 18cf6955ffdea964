"""What each arm costs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_lightning.errors import UserError
from tl_lightning.study.plots.frames import MAX_ROWS, ended, error_bars, evenly, means, ordered
from tl_lightning.study.plots.style import (
    COLOURS,
    axis_text,
    compact,
    data_limits,
    dress,
    log_axis,
    mark_cut_ends,
    new_figure,
    spans_decades,
    wrap,
)


def cost_bars(
    results: pd.DataFrame,
    order: Sequence[object] | None = None,
    costs: Sequence[str] = ("train_seconds", "peak_memory_mb", "trainable_parameters"),
) -> Figure:
    """Draw what each arm costs, a panel a cost: bars, or points on a logarithmic axis beyond a factor of 30.

    Args:
        results: A trial a row; failed trials are left out.
        order: Arms from top to bottom; by default as they come.
        costs: Columns to draw; those that were not measured are left out.
    """
    costs = [cost for cost in costs if cost in results and results[cost].notna().any()]
    if not costs:
        raise UserError("no cost to draw: none was measured")
    order = evenly(ordered(ended(results, costs[0]), "arm", order), MAX_ROWS)
    figure = new_figure(max(8.0, 1.8 + 2.6 * len(costs)), 1.2 + 0.42 * len(order))
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    for number, (panel, cost) in enumerate(zip(panels, costs, strict=True)):
        _draw_costs(panel, means(ended(results, cost), "arm", order, cost), order, COLOURS[number % len(COLOURS)])
        panel.set_xlabel(axis_text(cost))
    figure.set_layout_engine("constrained", w_pad=0.12)  # so that a number seems to belong to the panel on its left
    panels[0].set_yticks(range(len(order)), [wrap(str(arm), 24) for arm in order])
    panels[0].set_ylim(len(order) - 0.5, -0.5)
    return figure


def _draw_costs(panel: Axes, summary: pd.DataFrame, order: Sequence[object], colour: str) -> None:
    rows = [order.index(arm) for arm in summary.index]
    means = summary["mean"].to_numpy()
    log = spans_decades(means, 30.0)
    if log:
        log_axis(panel, means.min() / 3, means.max() * 3)
        panel.scatter(means, rows, color=colour, s=40, zorder=3)
    else:
        panel.barh(rows, means, color=colour, alpha=0.75, height=0.6)
        panel.set_xlim(0, data_limits([0.0, *means], summary["low"], summary["high"], n=summary["n"])[1])
        panel.errorbar(means, rows, xerr=error_bars(summary), fmt="none", ecolor="#333333", elinewidth=1.2)
    for row, mean in zip(rows, means, strict=True):
        panel.text(1.02, row, compact(mean), transform=panel.get_yaxis_transform(), va="center", fontsize=9)
    mark_cut_ends(panel)
    dress(panel, "x")
