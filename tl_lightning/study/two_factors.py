"""A table of two factors: a metric's mean and interval for each pair of their values."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from tl_lightning.study.intervals import mean_interval


def grid_table(
    results: pd.DataFrame,
    row: str,
    column: str,
    metric: str,
    *,
    order: Sequence[object] | None = None,
    column_text: str = "{}",
    factor: float = 100.0,
    digits: int = 1,
    interval: bool = True,
) -> pd.DataFrame:
    """Return a row for each value of one factor and a column for each value of another.

    Args:
        results: A trial a row.
        row: Column of the first factor.
        column: Column of the second one; its values stand in ascending order.
        metric: What to show: its mean over the trials, with the t-based 95 % interval where there are several.
        order: Values of the first factor from top to bottom.
        column_text: Heading of a column, with ``{}`` for the value.
        factor: Multiplies the metric: 100 for percent.
        digits: Behind the point.
        interval: Whether to show the interval.
    """
    known = results.dropna(subset=[metric])
    present = list(dict.fromkeys(known[row])) if order is None else [v for v in order if v in set(known[row])]
    rows = []
    for value in present:
        cells: dict[str, object] = {row: value}
        for level in sorted(known[column].unique()):
            trials = known.loc[(known[row] == value) & (known[column] == level), metric]
            cells[column_text.format(level)] = _cell(trials * factor, digits, interval)
        rows.append(cells)
    return pd.DataFrame(rows)


def _cell(values: pd.Series, digits: int, interval: bool) -> str:
    if values.empty:
        return "n/a"
    found = mean_interval(values)
    bounds = f" [{found.low:.{digits}f}, {found.high:.{digits}f}]" if interval and found.n > 1 else ""
    return f"{found.mean:.{digits}f}{bounds}"
