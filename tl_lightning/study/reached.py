"""When a learning curve first reaches a value: images seen, seconds."""

from __future__ import annotations

import pandas as pd


def with_images_seen(curves: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Return the curves with a column ``images_seen``: training images, with repetition, up to the epoch's end.

    Args:
        curves: Columns ``arm``, ``seed`` and ``epoch`` (from 0), as of ``Report.curves``.
        results: Columns ``arm``, ``seed`` and ``train_images``.
    """
    sizes = results[["arm", "seed", "train_images"]]
    joined = curves.merge(sizes, on=["arm", "seed"], how="inner")
    return joined.assign(images_seen=(joined["epoch"] + 1) * joined["train_images"]).drop(columns="train_images")


def first_reached(curves: pd.DataFrame, metric: str, value: float) -> pd.DataFrame:
    """Return for each trial the first epoch whose metric is at least the value.

    Args:
        curves: Columns ``arm``, ``seed``, ``epoch``, ``seconds``, ``images_seen`` and the metric.
        metric: Column, higher is better.
        value: The value to reach.

    Returns:
        A row for each trial with ``arm``, ``seed``, ``epoch``, ``seconds`` and ``images_seen``; missing where the
        trial never got there.
    """
    columns = ["epoch", "seconds", "images_seen"]
    trials = curves[["arm", "seed"]].drop_duplicates()
    first = curves[curves[metric] >= value].sort_values("epoch").groupby(["arm", "seed"], sort=False)[columns].first()
    return trials.merge(first.reset_index(), on=["arm", "seed"], how="left").reset_index(drop=True)


def race(curves: pd.DataFrame, arm: str, reference: str, metric: str = "val/accuracy") -> pd.DataFrame:
    """Return by seed when an arm passes the best value that its reference ever had, and when the reference did.

    Args:
        curves: As for ``first_reached``.
        arm: Name of the arm.
        reference: Name of the arm whose best value is to be reached.
        metric: Column, higher is better.

    Returns:
        A row for each seed that both arms have, with ``seed``, ``value``, ``images_seen`` and ``seconds`` of the arm
        (missing where it never got there), ``reference_images_seen`` and ``reference_seconds``.
    """
    rows = []
    for seed, own in curves[curves["arm"] == arm].groupby("seed"):
        other = curves[(curves["arm"] == reference) & (curves["seed"] == seed)]
        if other.empty:
            continue
        value = other[metric].max()
        first, late = (first_reached(frame, metric, value).iloc[0] for frame in (own, other))
        rows.append(
            {
                "seed": seed,
                "value": value,
                "images_seen": first["images_seen"],
                "seconds": first["seconds"],
                "reference_images_seen": late["images_seen"],
                "reference_seconds": late["seconds"],
            }
        )
    columns = ["seed", "value", "images_seen", "seconds", "reference_images_seen", "reference_seconds"]
    return pd.DataFrame(rows, columns=columns)


def race_sentence(curves: pd.DataFrame, arm: str, reference: str, metric: str = "val/accuracy") -> str:
    """Say in a sentence what ``race`` found."""
    found = race(curves, arm, reference, metric)
    passed = found.dropna(subset=["images_seen"])
    if passed.empty:
        return f"In none of {len(found)} seeds does *{arm}* reach the best validation accuracy of *{reference}*."
    own, other = (f"{passed[f'{who}images_seen'].mean():.0f} images" for who in ("", "reference_"))
    times = [f"{passed[f'{who}seconds'].mean():.1f} s" for who in ("", "reference_")]
    return (
        f"*{arm}* reaches the best validation accuracy of *{reference}* in {len(passed)} of {len(found)} seeds "
        f"({100 * passed['value'].mean():.1f} % on average over these), after {own} and {times[0]} (validation "
        f"included) where that needs {other} and {times[1]}."
    )
