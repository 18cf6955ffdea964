"""Gains of arms over their references where a study has several pairs: by level, on average; and where arms lack."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import pandas as pd

from tl_lightning.study.comparison import Pair, compare, contrast, gain
from tl_lightning.study.intervals import Interval, mean_interval
from tl_lightning.study.statistics import Comparison

Key = TypeVar("Key")
MISSING = Interval(math.nan, math.nan, math.nan, 0)  # no seed: whatever the rule, it is not decided


def comparisons(results: pd.DataFrame, pairs: Mapping[Key, Pair], metric: str) -> dict[Key, Comparison]:
    """Compare each pair of arms; pairs that share no seed that both ended are left out."""
    return {key: compare(results, *pair, metric) for key, pair in pairs.items() if seeds(results, *pair)}


def mean_gain(results: pd.DataFrame, pairs: Sequence[Pair], metric: str) -> Interval:
    """Return the gain averaged over the pairs at each seed, with its interval over the seeds that ended all arms."""
    complete = seeds(results, *(arm for pair in pairs for arm in pair))
    if not complete:
        return MISSING
    gains = [gain(results, pair, metric) for pair in pairs]
    return mean_interval([_mean(gains, seed) for seed in sorted(complete)])


def mean_contrast(results: pd.DataFrame, first: Sequence[Pair], second: Sequence[Pair], metric: str) -> Interval:
    """Return how much larger the mean gain of the first pairs is than that of the second ones, paired by seed."""
    complete = seeds(results, *(arm for pair in (*first, *second) for arm in pair))
    if not complete:
        return MISSING
    kept = results[results["seed"].isin(complete)]
    one, other = ([gain(kept, pair, metric) for pair in pairs] for pairs in (first, second))
    return mean_interval([_mean(one, seed) - _mean(other, seed) for seed in sorted(complete)])


def contrast_interval(results: pd.DataFrame, first: Pair, second: Pair, metric: str) -> Interval:
    """Return how much larger the first pair's gain is than the second's, paired by seed."""
    return contrast(results, first, second, metric).difference if seeds(results, *first, *second) else MISSING


def gain_interval(results: pd.DataFrame, pair: Pair, metric: str) -> Interval:
    """Return the paired difference of an arm to its reference."""
    return compare(results, *pair, metric).difference if seeds(results, *pair) else MISSING


def seeds(results: pd.DataFrame, *arms: str) -> set[int]:
    """Return the seeds that all of the arms ended."""
    by_arm = [set(results.loc[results["arm"] == arm, "seed"].astype(int)) for arm in arms]
    return set.intersection(*by_arm) if by_arm else set()


def _mean(gains: Sequence[Mapping[Hashable, float]], seed: int) -> float:
    return sum(by[seed] for by in gains) / len(gains)
