"""Paired comparison of arms, refused where the arms did not see the same data."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pandas as pd

from tl_lightning.errors import UserError
from tl_lightning.study.statistics import Comparison, holm, paired_difference, shared

# Two records may be compared only if these agree at each seed.
SAME_AT_EACH_SEED = ("data", "data_fingerprint", "test_fingerprint", "transform_fingerprint")


def by_seed(results: pd.DataFrame, arm: str, metric: str) -> dict[Hashable, float]:
    """Return the metric of one arm, keyed by seed.

    Raises:
        UserError: The arm has two records of one seed.
    """
    rows = results[results["arm"] == arm]
    if rows["seed"].duplicated().any():
        raise UserError(f"arm {arm!r} has more than one record of a seed")
    return {int(seed): float(value) for seed, value in zip(rows["seed"], rows[metric], strict=True)}


def compare(
    results: pd.DataFrame, arm: str, reference: str, metric: str, same: Sequence[str] = SAME_AT_EACH_SEED
) -> Comparison:
    """Return the paired difference ``arm - reference`` over the seeds that both arms ended.

    Args:
        results: A trial a row.
        arm: Name of the arm.
        reference: Name of the arm to compare with.
        metric: Column to compare.
        same: Columns that must agree between the two arms at each seed.

    Raises:
        UserError: The arms did not see the same data, or share no seed.
    """
    _check_same(results, arm, reference, same)
    a, b = shared(by_seed(results, arm, metric), by_seed(results, reference, metric))
    if not a:
        raise UserError(f"arms {arm!r} and {reference!r} share no seed that both ended")
    return paired_difference(a, b)


def compare_all(results: pd.DataFrame, reference: str, metric: str) -> dict[str, Comparison]:
    """Compare every other arm with the reference, corrected for their number (Holm 1979)."""
    arms = [arm for arm in results["arm"].unique() if arm != reference]
    return holm({arm: compare(results, arm, reference, metric) for arm in arms})


def _check_same(results: pd.DataFrame, arm: str, reference: str, same: Sequence[str]) -> None:
    pair = results[results["arm"].isin([arm, reference])]
    for column in same:
        if column not in pair:
            continue
        different = pair.groupby("seed")[column].nunique(dropna=False)
        if (different > 1).any():
            seed = different[different > 1].index[0]
            raise UserError(f"arms {arm!r} and {reference!r} cannot be compared: {column} differs at seed {seed}")
