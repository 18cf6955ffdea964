"""The tables that most reports show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tl_lightning.study.intervals import mean_interval
from tl_lightning.study.statistics import Comparison

HOW_TO_READ_DIFFERENCES = (
    "Paired differences over the seeds with their t-based 95 % interval; p-values are corrected for the number of "
    "arms (Holm 1979). An interval stands for one comparison, the verdict for all of them: an interval may leave out 0 "
    "where the verdict is *no difference shown*, which means that these seeds cannot tell the arms apart, not that "
    "they are equal."
)

# Column of the results, heading, factor, digits.
COLUMNS = (
    ("val_accuracy", "val accuracy", 1.0, 3),
    ("test_accuracy", "test accuracy [95 % interval]", 1.0, 3),
    ("test_macro_f1", "macro F1", 1.0, 3),
    ("test_ece", "calibration error", 1.0, 3),
    ("val_map", "val mAP", 1.0, 3),
    ("test_map", "test mAP [95 % interval]", 1.0, 3),
    ("test_map_50", "test mAP at IoU 0.5", 1.0, 3),
    ("val_miou", "val mIoU", 1.0, 3),
    ("test_miou", "test mIoU [95 % interval]", 1.0, 3),
    ("test_pixel_accuracy", "pixel accuracy", 1.0, 3),
    ("train_seconds", "seconds", 1.0, 1),
    ("images_per_second", "images/s", 1.0, 0),
    ("peak_memory_mb", "peak memory (MiB)", 1.0, 0),
    ("trainable_parameters", "trainable parameters (M)", 1e-6, 3),
)


def arm_table(results: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Return a row for each arm with means over its seeds, ready to be shown."""
    rows = []
    for arm in arms:
        trials = results[results["arm"] == arm]
        if trials.empty:
            continue
        row: dict[str, Any] = {"arm": arm, "seeds": len(trials)}
        for column, heading, factor, digits in COLUMNS:
            if column in trials:
                row[heading] = _cell(trials[column] * factor, digits, "interval" in heading)
        rates = trials["learning_rate"].value_counts()
        row["learning rates chosen"] = ", ".join(f"{rate:g} ({count}x)" for rate, count in rates.items())
        if trials["learning_rate_at_edge"].any():
            row["learning rates chosen"] += ", at the edge of the grid"
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_table(comparisons: Mapping[str, Comparison], unit: str = "points", factor: float = 100) -> pd.DataFrame:
    """Return a row for each compared arm: difference with interval, corrected p-value, verdict."""
    rows = [
        {
            "arm": arm,
            f"difference ({unit})": c.difference.scaled(factor).format(1),
            "p (Holm)": "n/a" if c.p_adjusted is None or pd.isna(c.p_adjusted) else f"{c.p_adjusted:.3f}",
            "verdict": c.verdict + (", anecdotal" if c.anecdotal else ""),
        }
        for arm, c in comparisons.items()
    ]
    return pd.DataFrame(rows)


def _cell(values: pd.Series, digits: int, interval: bool) -> str:
    known = values.dropna()
    if known.empty:
        return "n/a"
    estimate = mean_interval(known)
    if interval and estimate.n > 1:
        return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return f"{estimate.mean:.{digits}f}"
