"""Statistics of a study: intervals over seeds, paired comparisons, equivalence, correlation, verdicts.

Arrays (or mappings from seed to value) in, frozen dataclasses out. Nothing here picks a best seed: every
number stands for all that were run, with its interval and n.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tl_lightning.errors import UserError, unknown_name
from tl_lightning.study.intervals import (
    Interval,
    Values,
    aligned,
    bootstrap_interval,
    mean_interval,
    mean_spearman,
    slope,
    spearman,
)

__all__ = [
    "Comparison",
    "Equivalence",
    "Interval",
    "all_of",
    "bootstrap_interval",
    "decide",
    "differences",
    "equivalence",
    "holm",
    "mean_interval",
    "mean_spearman",
    "paired_difference",
    "paired_ratio",
    "shared",
    "slope",
    "spearman",
    "unpaired_difference",
]

Direction = Literal["higher", "lower", "no difference shown"]
Verdict = Literal["holds", "fails", "not decided"]


@dataclass(frozen=True)
class Comparison:
    """A paired comparison a - b: the mean difference with its interval, the p-value, and what may be said.

    `p_value` is two-sided, nan where n = 1; `p_adjusted` is set by `holm`. Differences without any spread
    (costs that no seed changes, or accuracies on a handful of images) give an interval of width zero.
    """

    difference: Interval
    n: int
    p_value: float
    verdict: Direction
    anecdotal: bool
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests: `difference` has the (1 - 2 alpha) interval, inside the margin if equivalent."""

    difference: Interval
    margin: float
    n: int
    p_value: float
    verdict: Literal["equivalent", "not shown equivalent"]
    anecdotal: bool


def shared(*groups: Mapping[Hashable, float]) -> list[dict[Hashable, float]]:
    """Return the groups restricted to the keys that all of them hold, in the first one's order.

    For arms of which single trials failed; say how many were left out, since what fails is seldom random.
    """
    keys = [key for key in groups[0] if all(key in group for group in groups)]
    return [{key: group[key] for key in keys} for group in groups]


def differences(a: Mapping[Hashable, float], b: Mapping[Hashable, float]) -> dict[Hashable, float]:
    """Return a - b by key, for differences of differences; unequal keys raise `UserError`."""
    first, second = aligned(a, b)
    return dict(zip(a, (first - second).tolist(), strict=True))


def paired_difference(a: Values, b: Values, confidence: float = 0.95) -> Comparison:
    """Compare two arms by their paired difference a - b (paired t-test).

    Args:
        a: Values by seed, or an array aligned with `b`.
        b: The same for the other arm.
        confidence: Coverage of the interval; the verdict is the side of 0 on which the whole interval lies.

    Raises:
        UserError: Keys or lengths differ, or a value is not finite.
    """
    difference = _subtract(a, b)
    interval = mean_interval(difference, confidence)
    return Comparison(
        difference=interval,
        n=interval.n,
        p_value=_t_test(difference, 0.0, "two-sided"),
        verdict=_direction(interval),
        anecdotal=interval.anecdotal,
    )


def paired_ratio(a: Values, b: Values, confidence: float = 0.95) -> Interval:
    """Return the geometric mean of a / b over the pairs, with the t interval of the logarithms taken back."""
    first, second = aligned(a, b)
    if min(first.min(), second.min()) <= 0:
        raise UserError("a ratio needs values above 0 on both sides")
    log = mean_interval(np.log(first) - np.log(second), confidence)
    mean, low, high = np.exp([log.mean, log.low, log.high]).tolist()
    return Interval(mean, low, high, log.n)


def unpaired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return mean(a) - mean(b) of two independent samples with the interval of Welch (1947), such as of two data sets.

    `n` is that of the smaller sample; the bounds are nan where it has one value.

    Raises:
        UserError: A sample is empty, or a value is not finite.
    """
    first, second = mean_interval(a, confidence), mean_interval(b, confidence)
    difference, n = first.mean - second.mean, min(first.n, second.n)
    if n < 2:
        return Interval(difference, np.nan, np.nan, n)
    samples = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    errors = np.array([sample.var(ddof=1) / len(sample) for sample in samples])  # squared
    if not errors.any():
        return Interval(difference, difference, difference, n)
    freedom = errors.sum() ** 2 / (errors**2 / (np.array([first.n, second.n]) - 1)).sum()
    half = float(special.stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(errors.sum()))
    return Interval(difference, difference - half, difference + half, n)


def holm(comparisons: Mapping[str, Comparison], alpha: float = 0.05) -> dict[str, Comparison]:
    """Correct a family of comparisons by Holm's step-down method (Holm 1979).

    Returns the comparisons with `p_adjusted` set, and with "no difference shown" where it is above `alpha`. A
    comparison without p-value (n = 1) is no test and stays outside the family.
    """
    p_values = np.array([comparison.p_value for comparison in comparisons.values()], dtype=float)
    adjusted = _holm_adjusted(p_values)
    corrected = {}
    for (name, comparison), p in zip(comparisons.items(), adjusted.tolist(), strict=True):
        verdict = comparison.verdict if p <= alpha else "no difference shown"
        corrected[name] = dataclasses.replace(comparison, p_adjusted=p, verdict=verdict)
    return corrected


def equivalence(a: Values, b: Values, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test whether |mean(a - b)| < margin by two one-sided paired t-tests (Schuirmann 1987).

    Args:
        a: Values by seed, or an array aligned with `b`.
        b: The same for the other arm.
        margin: The largest difference that counts as none, in the values' unit; chosen before the run.
        alpha: Level of each one-sided test.

    Raises:
        UserError: Keys or lengths differ, a value is not finite, or the margin is not above 0.
    """
    if not margin > 0:
        raise UserError(f"the margin of an equivalence test must be above 0, not {margin}")
    difference = _subtract(a, b)
    interval = mean_interval(difference, 1 - 2 * alpha)
    p = float(np.max([_t_test(difference, -margin, "greater"), _t_test(difference, margin, "less")]))
    verdict: Literal["equivalent", "not shown equivalent"] = "equivalent" if p < alpha else "not shown equivalent"
    return Equivalence(interval, margin, interval.n, p, verdict, interval.anecdotal)


def decide(
    interval: Interval,
    bound: float | tuple[float, float],
    direction: Literal["above", "below", "within"] = "above",
) -> Verdict:
    """Decide a criterion that was written before the run.

    Args:
        interval: The effect with its interval.
        bound: The value to be above or below; a pair (low, high) for "within".
        direction: Which side of the bound the criterion claims.

    Returns:
        "holds" where the whole interval lies on the claimed side, "fails" where it lies on the other, else
        (also without bounds) "not decided".
    """
    if direction == "within":
        if not isinstance(bound, tuple):
            raise UserError("direction 'within' needs a bound of two numbers (low, high)")
        holds = interval.low >= bound[0] and interval.high <= bound[1]
        fails = interval.high < bound[0] or interval.low > bound[1]
    elif isinstance(bound, tuple):
        raise UserError(f"direction {direction!r} needs one number as its bound")
    elif direction == "above":
        holds, fails = interval.low > bound, interval.high <= bound
    elif direction == "below":
        holds, fails = interval.high < bound, interval.low >= bound
    else:
        raise unknown_name("direction", direction, ["above", "below", "within"])
    return "holds" if holds else "fails" if fails else "not decided"


def all_of(*verdicts: Verdict) -> Verdict:
    """Return the verdict on a criterion of several parts: one that fails fails it, all must hold for it to hold."""
    if "fails" in verdicts:
        return "fails"
    return "holds" if set(verdicts) == {"holds"} else "not decided"


def _subtract(a: Values, b: Values) -> NDArray[np.float64]:
    first, second = aligned(a, b)
    return first - second


def _direction(interval: Interval) -> Direction:
    if interval.low > 0:
        return "higher"
    return "lower" if interval.high < 0 else "no difference shown"


def _t_test(difference: NDArray[np.float64], null: float, alternative: str) -> float:
    """Return the p-value of a one-sample t-test; nan where n = 1, the limit where there is no spread."""
    n = len(difference)
    if n < 2:
        return float("nan")
    shift, deviation = float(difference.mean() - null), float(difference.std(ddof=1))
    t = shift / (deviation / np.sqrt(n)) if deviation > 0 else np.inf * np.sign(shift) if shift else 0.0
    below = float(special.stdtr(n - 1, t))
    above = float(special.stdtr(n - 1, -t))
    return {"less": below, "greater": above, "two-sided": min(1.0, 2 * min(below, above))}[alternative]


def _holm_adjusted(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted
