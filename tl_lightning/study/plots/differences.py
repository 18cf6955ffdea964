"""Paired differences as a forest plot."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tl_lightning.errors import UserError
from tl_lightning.study.plots.frames import MAX_ROWS, error_bars
from tl_lightning.study.plots.style import (
    HIGHER,
    LOWER,
    UNDECIDED,
    axis_text,
    data_limits,
    dress,
    mark_cut_ends,
    new_figure,
    unit,
    wrap,
)
from tl_lightning.study.statistics import Comparison


def paired_differences(comparisons: Mapping[str, Comparison], metric: str = "test_accuracy") -> Figure:
    """Draw each paired difference with its interval against zero, its numbers beside it.

    Args:
        comparisons: By what is compared, such as ``head only - nothing frozen``; from top to bottom.
        metric: What the difference is of; accuracies are drawn in percentage points.
    """
    if not comparisons:
        raise UserError("no paired difference to draw: no two arms share a seed")
    left_out = max(0, len(comparisons) - MAX_ROWS)
    comparisons = dict(list(comparisons.items())[:MAX_ROWS])
    factor = 100.0 if unit(metric) else 1.0
    figure = new_figure(8.0, 1.3 + 0.42 * len(comparisons))
    axes = figure.add_subplot()
    intervals = [comparison.difference for comparison in comparisons.values()]
    frame = factor * pd.DataFrame([[i.mean, i.low, i.high] for i in intervals], columns=["mean", "low", "high"])
    limits = data_limits([*frame["mean"], 0.0], frame["low"], frame["high"], n=[i.n for i in intervals])
    axes.axvline(0, color="#333333", linewidth=1)
    errors = error_bars(frame)
    for row, comparison in enumerate(comparisons.values()):
        colour = {"higher": HIGHER, "lower": LOWER}.get(comparison.verdict, UNDECIDED)
        axes.errorbar(
            frame["mean"][row],
            row,
            xerr=errors[:, row : row + 1],
            color=colour,
            marker="o",
            markersize=7,
            markerfacecolor="white" if comparison.anecdotal else colour,
            elinewidth=2,
        )
        mean, low, high = frame.to_numpy()[row].tolist()
        text = _numbers(mean, low, high, comparison)
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=colour)
    axes.set_xlim(*limits)
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.set_yticks(range(len(comparisons)), [wrap(name, 34) for name in comparisons])
    axes.set_xlabel("Difference in " + _lower(axis_text(metric).replace(" (%)", " (percentage points)")))
    dress(axes, "x")
    if left_out:
        axes.set_title(f"the first {MAX_ROWS} of {MAX_ROWS + left_out}", fontsize=9, loc="left", color="#555555")
    mark_cut_ends(axes)
    return figure


def _numbers(mean: float, low: float, high: float, comparison: Comparison) -> str:
    if np.isnan(low):
        return f"{mean:+.2f}, n = 1, anecdotal"
    label = ", anecdotal" if comparison.anecdotal else ""
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}], n = {comparison.n}{label}"


def _lower(text: str) -> str:
    return text if text[:2].isupper() else text[:1].lower() + text[1:]
