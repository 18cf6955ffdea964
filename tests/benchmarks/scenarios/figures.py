"""The chart of a run: a panel for each scenario."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from scenarios.measure import Result, Row
from scenarios.report import number
from scenarios.workload import BARE, OURS

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#7F7F7F"  # Okabe and Ito; blue is ours, orange a peer, grey a yardstick


def draw(results: Sequence[Result], path: Path, caption: str) -> None:
    """Draw all results into one PNG file."""
    shown = [result for result in results if result.rows]
    if not shown:
        return
    heights = [4.5 if _lines(result) else 1.0 + 0.32 * len(_bars(result)) for result in shown]
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(9, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for ax, result in zip(axes[:, 0], shown, strict=True):
        (_draw_growth if _lines(result) else _draw_bars)(ax, result)
        ax.set_title(f"{result.scenario}  {result.title}", loc="left", fontsize=10, fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, -0.01, caption, fontsize=8, color="#444444", va="top")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _bars(result: Result) -> list[Row]:
    unit = result.rows[0].unit
    rows = [row for row in result.rows if row.unit == unit]
    return sorted(rows, key=lambda row: row.median, reverse=unit != "images/s")


def _draw_bars(ax: Axes, result: Result) -> None:
    """Draw medians as bars, the range of the repeats as a line, the value as text."""
    rows = _bars(result)
    for position, row in enumerate(rows):
        ax.barh(position, row.median, color=_color(row.contender), height=0.7)
        ax.plot([min(row.values), max(row.values)], [position, position], color="black", linewidth=1)
        ax.annotate(
            number(row.median),
            (max(row.values), position),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ax.set_yticks(range(len(rows)), [row.contender for row in rows], fontsize=8)
    better = "more" if rows[0].unit == "images/s" else "less"
    ax.set_xlabel(
        f"{rows[0].unit}, {better} is better; median, the line is the range of {len(rows[0].values)} runs", fontsize=8
    )
    ax.margins(x=0.12)
    if max(row.median for row in rows) > 20 * min(row.median for row in rows):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_xlabel(f"{ax.get_xlabel()}; logarithmic", fontsize=8)


def _lines(result: Result) -> list[str]:
    return list(dict.fromkeys(row.contender for row in result.rows if row.x is not None))


def _draw_growth(ax: Axes, result: Result) -> None:
    """Draw time over size, both logarithmic, a line for each contender and quantity."""
    for style, name in zip(("o-", "s--", "^-", "v--", "D-"), _lines(result), strict=False):
        rows = sorted((row for row in result.rows if row.contender == name), key=lambda row: row.x or 0)
        smallest = rows[0].x or 1.0
        ax.plot(
            [(row.x or 0) / smallest for row in rows],
            [row.median for row in rows],
            style,
            color=_color(name),
            label=name,
        )
    ax.set(xscale="log", yscale="log", xlabel="times the smallest size", ylabel="s")
    ax.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.minorticks_off()
    ax.legend(fontsize=8, frameon=False)


def _color(name: str) -> str:
    if name.startswith(OURS):
        return BLUE
    return GREY if name.startswith(BARE) or "forward" in name else ORANGE
