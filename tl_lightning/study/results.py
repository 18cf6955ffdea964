"""The tables of a study: a trial a row (`results.csv`), an arm a row (`summary.csv`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tl_lightning.study.atomic import write_text
from tl_lightning.study.intervals import t_half_width

SETTINGS = ("data", "backbone", "weights", "image_size", "epochs", "learning_rate")
COSTS = (
    "train_seconds",
    "images_per_second",
    "peak_memory_mb",
    "trainable_parameters",
    "total_parameters",
    "forward_flops",
)
PROVENANCE = ("device", "precision", "versions", "git_commit", "git_dirty", "status", "error")
SPREAD = ("factors", "hyper_parameters", "metrics")  # mappings of a record that give a column for each key


def results_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the records as a table, in the order given.

    The columns are study, arm and its factors, seed, settings and chosen hyper-parameters, metrics, costs, device,
    versions, status and error; then the rest by name. `factors`, `hyper_parameters` and `metrics` give a column for
    each key (``factors.NAME`` where the record has a value of that name that differs), `versions` is one text,
    lists (learning curves and the like) stay in the record only. Columns of the contract are there always.
    """
    rows = [_flat(record) for record in records]
    spread = {key: _keys(records, key) for key in SPREAD}
    present = dict.fromkeys(name for row in rows for name in row)
    factors = [name for name in present if name in spread["factors"] or name.startswith("factors.")]
    metrics = [name for name in present if name in spread["metrics"] or _is_metric(name, rows)]
    leading = [
        *("study", "arm"),
        *(name for name in factors if name not in ("study", "arm", "seed")),
        "seed",
        *SETTINGS,
        *(name for name in present if name in spread["hyper_parameters"]),
        *("val_accuracy", "test_accuracy"),
        *sorted(metrics),
        *COSTS,
        *PROVENANCE,
    ]
    columns = list(dict.fromkeys([*leading, *sorted(present)]))
    return pd.DataFrame({name: [row.get(name) for row in rows] for name in columns}, columns=columns).infer_objects()


def summary_frame(results: pd.DataFrame, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a row for each arm: mean and t-based 95 % interval of each metric over its trials.

    Args:
        results: As from `results_frame`, or read back from `results.csv`; the columns between `arm` and `seed` are
            the factors, trials of unequal factors are never averaged.
        metrics: Columns to summarise; by default all metrics and costs that were measured.

    Returns:
        `study`, `arm`, the factors, `trials` (that ended well), `failed`, and for each metric `_mean`, `_low`,
        `_high` and `_n` (trials in which it was measured). Arms stand in the order of their first trial.
    """
    keys = ["study", *factor_columns(results)]
    keys.insert(1, "arm")
    metrics = _measured(results) if metrics is None else list(metrics)
    ended = results["status"] == "ok"
    values = results[metrics].apply(pd.to_numeric).astype(float).where(ended)
    groups = results.groupby(keys, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    first = np.unique(groups, return_index=True)[1]
    summary = results.iloc[first][keys].reset_index(drop=True)
    summary["trials"] = np.bincount(groups, weights=ended, minlength=len(first)).astype(int)
    summary["failed"] = np.bincount(groups, minlength=len(first)) - summary["trials"]
    grouped = values.groupby(groups)
    mean, deviation, count = grouped.mean(), grouped.std(), grouped.count()
    columns = {}
    for metric in metrics:
        half = t_half_width(deviation[metric], count[metric])
        columns[f"{metric}_mean"] = mean[metric].to_numpy()
        columns[f"{metric}_low"] = mean[metric].to_numpy() - half
        columns[f"{metric}_high"] = mean[metric].to_numpy() + half
        columns[f"{metric}_n"] = count[metric].to_numpy()
    return pd.concat([summary, pd.DataFrame(columns)], axis=1)


def factor_columns(results: pd.DataFrame) -> list[str]:
    """Return the names of the columns that hold the arms' factors."""
    names = list(results.columns)
    return names[names.index("arm") + 1 : names.index("seed")]


def write_results_csv(out: Path, results: pd.DataFrame) -> Path:
    """Write `results.csv` under the folder at once; whole numbers stay whole beside missing ones."""
    return _write_csv(out / "results.csv", results)


def write_summary_csv(out: Path, summary: pd.DataFrame) -> Path:
    """Write `summary.csv` under the folder at once."""
    return _write_csv(out / "summary.csv", summary)


def _write_csv(path: Path, frame: pd.DataFrame) -> Path:
    whole = {name: "Int64" for name in frame.columns if _whole_with_gaps(frame[name])}
    write_text(path, frame.astype(whole).to_csv(index=False, lineterminator="\n"))
    return path


def _whole_with_gaps(column: pd.Series) -> bool:
    """Return whether pandas made the column float only because values are missing."""
    if column.dtype != float or not column.isna().any():
        return False
    values = column.dropna().to_numpy()
    return bool(len(values)) and bool((np.abs(values) < 2**53).all()) and bool((values == np.trunc(values)).all())


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in record.items():
        if key == "versions" and isinstance(value, Mapping):
            row[key] = "; ".join(f"{name} {version}" for name, version in value.items())
        elif isinstance(value, Mapping):
            continue
        elif not isinstance(value, list | tuple):
            row[key] = value
    for key, mapping in record.items():
        if key in ("versions", "settings") or not isinstance(mapping, Mapping):
            continue
        for name, value in mapping.items():
            if isinstance(value, Mapping | list | tuple):
                continue
            clash = name in row and row[name] != value
            row[f"{key}.{name}" if clash or key not in SPREAD else name] = value
    return row


def _keys(records: Sequence[Mapping[str, Any]], key: str) -> set[str]:
    return {name for record in records for name in (record.get(key) or {})}


def _is_metric(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    if not name.startswith(("val_", "test_")):
        return False
    return all(isinstance(row.get(name), int | float | None) for row in rows)


def _measured(results: pd.DataFrame) -> list[str]:
    names = [name for name in results.columns if name.startswith(("val_", "test_")) or name in COSTS]
    return [name for name in names if pd.api.types.is_numeric_dtype(results[name]) and results[name].notna().any()]
