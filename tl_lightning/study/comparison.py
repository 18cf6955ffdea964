"""Paired comparison of arms, refused where the arms did not see the same data."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from tl_lightning.errors import UserError
from tl_lightning.study.intervals import Interval, slope
from tl_lightning.study.statistics import Comparison, differences, holm, paired_difference, shared

# Two records may be compared only if these agree at each seed.
SAME_AT_EACH_SEED = ("data", "data_fingerprint", "test_fingerprint", "transform_fingerprint", "learning_rates_tried")
Pair = tuple[str, str]  # an arm and its reference


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


def gain(
    results: pd.DataFrame, pair: Pair, metric: str, same: Sequence[str] = SAME_AT_EACH_SEED
) -> dict[Hashable, float]:
    """Return the difference of an arm to its reference by seed, over the seeds that both ended.

    Raises:
        UserError: As ``compare``.
    """
    _check_same(results, *pair, same)
    first, second = shared(*(by_seed(results, arm, metric) for arm in pair))
    if not first:
        raise UserError(f"arms {pair[0]!r} and {pair[1]!r} share no seed that both ended")
    return differences(first, second)


def contrast(
    results: pd.DataFrame, first: Pair, second: Pair, metric: str, same: Sequence[str] = SAME_AT_EACH_SEED
) -> Comparison:
    """Return how much larger the gain of one pair of arms is than that of another, paired by seed.

    The arms within a pair must have seen the same data; the two pairs may differ in data, such as the number of images.
    """
    a, b = shared(gain(results, first, metric, same), gain(results, second, metric, same))
    if not a:
        raise UserError(f"the pairs {first} and {second} share no seed that all four arms ended")
    return paired_difference(a, b)


def gain_trend(results: pd.DataFrame, pairs: Mapping[float, Pair], metric: str) -> Interval:
    """Return how the gain changes when its level grows tenfold: a slope for each seed, the interval over seeds.

    Args:
        results: A trial a row.
        pairs: The arm and its reference at each level above 0, such as images a class; at least two levels.
        metric: Column to compare.
    """
    gains = {level: gain(results, pair, metric) for level, pair in pairs.items()}
    points = [(level, value, seed) for level, by in gains.items() for seed, value in by.items()]
    complete = [seed for seed in {seed for *_, seed in points} if all(seed in by for by in gains.values())]
    if not complete:
        raise UserError("no seed ended the arms at all levels")
    levels, values, seeds = zip(*(point for point in points if point[2] in complete), strict=True)
    return slope(np.log10(np.asarray(levels, dtype=float)), np.asarray(values), seeds)


def _check_same(results: pd.DataFrame, arm: str, reference: str, same: Sequence[str]) -> None:
    pair = results[results["arm"].isin([arm, reference])]
    for column in same:
        if column not in pair:
            continue
        different = pair.groupby("seed")[column].nunique(dropna=False)
        if (different > 1).any():
            seed = different[different > 1].index[0]
            raise UserError(f"arms {arm!r} and {reference!r} cannot be compared: {column} differs at seed {seed}")
