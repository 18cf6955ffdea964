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
