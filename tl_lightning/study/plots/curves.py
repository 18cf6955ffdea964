"""Learning curves: metrics by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tl_lightning.errors import UserError
from tl_lightning.study.plots.frames import error_bars, evenly, means, ordered, seeds_text, value_limits
from tl_lightning.study.plots.style import (
    COLOURS,
    LINES,
    MARKERS,
    axis_text,
    dress,
    mark_cut_ends,
    new_figure,
    scaled,
    wrap,
)

MAX_CURVES = 8
MAX_BANDS = 3  # more bands than these hide each other


def learning_curves(
    curves: pd.DataFrame,
    metrics: Sequence[str] = ("train/loss", "val/accuracy"),
    arms: Sequence[object] | None = None,
    x: str = "epoch",
) -> Figure:
    """Draw the mean of each metric by epoch, a line an arm, a panel a metric; up to 3 arms with their 95 % bands.

    Args:
        curves: Columns `arm`, `seed`, `epoch` (from 0; drawn from 1), the metrics and, if it is named, `x`; an epoch of
            a trial a row.
        metrics: Columns to draw, a panel each, those that are missing left out.
        arms: Arms in order; with more than 8, every n-th is drawn and the title says so.
        x: Column on the horizontal axis, `epoch` or for example `seconds` (its mean over seeds at each epoch).
    """
    if len(curves):
        order = ordered(curves, "arm", arms)
        shown = evenly(order, MAX_CURVES)
        curves = curves[curves["arm"].isin(shown)]
    metrics = [metric for metric in metrics if metric in curves and curves[metric].notna().any()]
    if not metrics:
        raise UserError("no learning curve to draw: no trial ended, or none logged the metrics asked for")
    figure = new_figure(max(8.0, 4.4 * len(metrics)), 4.8)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    handles = {}
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_curves(panel, curves, metric, shown, x)
        handles.update({label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)})
    labels = [wrap(label, 30) for label in handles]
    columns = min(len(labels), 4 if len(metrics) > 1 else 3)
    figure.legend(
        list(handles.values()), labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9,
        handlelength=3,
    )  # fmt: skip
    if len(shown) < len(order):
        figure.suptitle(f"{len(shown)} of {len(order)} arms", fontsize=9, color="#555555")
    return figure


def _draw_curves(panel: Axes, curves: pd.DataFrame, metric: str, arms: Sequence[object], x: str) -> None:
    drawn, banded = [], len(arms) <= MAX_BANDS
    for number, arm in enumerate(arms):
        rows = curves[(curves["arm"] == arm) & curves[metric].notna()]
        epochs = sorted(rows["epoch"].unique())
        if not epochs:
            continue
        summary = means(rows, "epoch", epochs, metric)
        places = rows.groupby("epoch")[x].mean().loc[summary.index] if x != "epoch" else summary.index + 1
        colour, every = COLOURS[number], max(1, len(epochs) // 10)
        panel.plot(
            places, summary["mean"], color=colour, marker=MARKERS[number], linestyle=LINES[number],
            markersize=5 if len(places) > 1 else 9, markevery=every, linewidth=1.5, label=str(arm),
        )  # fmt: skip
        if banded:
            _draw_band(panel, places, summary, colour)
        drawn.append(summary if banded else summary.assign(low=np.nan, high=np.nan))
    shown = pd.concat(drawn)
    seen = curves[metric] if banded else shown["mean"] / scaled(1.0, metric)  # single seeds are not drawn
    panel.set_ylim(*value_limits(seen, metric, shown))
    panel.set_xlabel(axis_text(x))
    panel.set_ylabel(axis_text(metric))
    panel.set_title(seeds_text(curves, interval=banded), fontsize=9, loc="left", color="#555555")
    mark_cut_ends(panel)
    if x == "epoch":
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    dress(panel)


def _draw_band(panel: Axes, places: pd.Series | pd.Index, summary: pd.DataFrame, colour: str) -> None:
    """Draw the intervals as a band, or as a bar where there is one epoch alone, which a band would not show."""
    if len(places) == 1:
        panel.errorbar(places, summary["mean"], error_bars(summary), fmt="none", ecolor=colour, elinewidth=1.6)
    else:
        panel.fill_between(places, summary["low"], summary["high"], color=colour, alpha=0.10, linewidth=0)
