"""Estimates with intervals: means over seeds, bootstrap, rank correlation, slope."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from tl_lightning.errors import UserError

MIN_SEEDS = 3  # fewer values than this are labelled anecdotal
Values = Mapping[Hashable, float] | ArrayLike


@dataclass(frozen=True)
class Interval:
    """An estimate `mean` with its interval [`low`, `high`] over `n` values; bounds are nan where n = 1."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def anecdotal(self) -> bool:
        """True with fewer than `MIN_SEEDS` values: too few to conclude from."""
        return self.n < MIN_SEEDS

    def scaled(self, factor: float) -> Interval:
        """Return the interval in another unit, for example times 100 in percentage points (`factor` above 0)."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor, self.n)

    def described(self, unit: str) -> str:
        """Return text such as ``+4.2 [+1.1, +7.3] points``, in words where something was not measured or has no end."""
        if np.isnan(self.mean):
            return "not measured"
        if np.isnan(self.low) or np.isnan(self.high):
            return f"{self.mean:+.3g} {unit} (no interval)"
        low = f"{self.low:+.3g}" if np.isfinite(self.low) else "no lower bound"
        high = f"{self.high:+.3g}" if np.isfinite(self.high) else "no upper bound"
        return f"{self.mean:+.3g} [{low}, {high}] {unit}"

    def format(self, digits: int = 3) -> str:
        """Return text such as ``0.871 [0.852, 0.890] (n = 5)``; without bounds the label is ``anecdotal``."""
        if np.isnan(self.low) or np.isnan(self.high):
            return f"{self.mean:.{digits}f} (n = {self.n}, anecdotal)"
        label = ", anecdotal" if self.anecdotal else ""
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] (n = {self.n}{label})"


NOT_MEASURED = Interval(np.nan, np.nan, np.nan, 0)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean with its t-based interval.

    Args:
        values: One value a seed, shape [n], n >= 1.
        confidence: Coverage of the interval.

    Raises:
        UserError: No value, or one that is not finite (leave failed trials out first).
    """
    array = finite(values, "values")
    deviation = float(array.std(ddof=1)) if len(array) > 1 else np.nan
    half = float(t_half_width(deviation, len(array), confidence))
    mean = float(array.mean())
    return Interval(mean, mean - half, mean + half, len(array))


def t_half_width(deviation: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> NDArray[np.float64]:
    """Return half the width of the t interval of a mean, elementwise; nan where n < 2.

    Args:
        deviation: Sample standard deviations (divisor n - 1).
        n: Numbers of values.
        confidence: Coverage of the interval.
    """
    _check_confidence(confidence)
    n = np.asarray(n, dtype=float)
    several = np.maximum(n, 2)
    quantile = special.stdtrit(several - 1, 0.5 + confidence / 2)
    half = quantile * np.asarray(deviation, dtype=float) / np.sqrt(several)
    return np.where(n < 2, np.nan, half)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., ArrayLike] = np.mean,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Return a statistic of many values (images, not seeds) with its BCa bootstrap interval (Efron 1987).

    Args:
        values: Shape [n]; with under some 15 values use `mean_interval`, the bootstrap is too narrow there.
        statistic: A function of an array; one that takes `axis` is computed for all resamples at once.
        seed: Seed of the resampling.
        confidence: Coverage of the interval.
        resamples: Number of bootstrap samples.
    """
    array = finite(values, "values")
    estimate = float(np.asarray(statistic(array)))
    if len(array) == 1:
        return Interval(estimate, np.nan, np.nan, 1)
    if np.ptp(array) == 0:
        return Interval(estimate, estimate, estimate, len(array))
    low, high = _bootstrap((array,), statistic, seed, confidence, resamples)
    return Interval(estimate, low, high, len(array))


def spearman(x: ArrayLike, y: ArrayLike, seed: int = 0, confidence: float = 0.95, resamples: int = 2000) -> Interval:
    """Return Spearman's rank correlation of pairs with its bootstrap interval (pairs are resampled).

    Args:
        x: Shape [n], n >= 3.
        y: Shape [n], aligned with `x`.
        seed: Seed of the resampling.
        confidence: Coverage of the interval.
        resamples: Number of bootstrap samples.

    Raises:
        UserError: Under 3 pairs, unequal lengths, a value that is not finite, or a side that is constant.
    """
    first, second = _rankable(x, y)
    estimate = float(_rank_correlation(first, second))
    low, high = _bootstrap((first, second), _rank_correlation, seed, confidence, resamples)
    return Interval(estimate, low, high, len(first))


def mean_spearman(
    scores: Mapping[str, ArrayLike], y: ArrayLike, seed: int = 0, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """Return Spearman's rank correlation with y, averaged over several scores, with its bootstrap interval.

    Whole columns (a pair of y and all scores) are resampled, since the scores of one column depend on each other.

    Args:
        scores: Each [n], n >= 3, aligned with `y`.
        y: Shape [n].
        seed: Seed of the resampling.
        confidence: Coverage of the interval.
        resamples: Number of bootstrap samples.

    Raises:
        UserError: As `spearman`, or there is no score.
    """
    if not scores:
        raise UserError("a mean rank correlation needs at least one score")
    columns = (finite(y), *(_rankable(values, y)[0] for values in scores.values()))
    low, high = _bootstrap(columns, _mean_rank_correlation, seed, confidence, resamples)
    return Interval(float(_mean_rank_correlation(*columns)), low, high, len(columns[0]))


def slope(x: ArrayLike, y: ArrayLike, groups: Sequence[Hashable] | None = None, confidence: float = 0.95) -> Interval:
    """Return the least-squares slope of y on x with its t interval.

    Args:
        x: Shape [n], for example log10 of the images a class.
        y: Shape [n], for example the gain.
        groups: Seeds of the points: points of one seed depend on each other, so each seed gives one slope and
            the interval is over seeds (n counts seeds). Without groups the points count as independent (n - 2
            degrees of freedom).
        confidence: Coverage of the interval.

    Raises:
        UserError: Unequal lengths, a value that is not finite, or fewer than two different x (in a group).
    """
    first, second = aligned(x, y)
    if groups is not None:
        if len(groups) != len(first):
            raise UserError(f"slope got {len(first)} points and {len(groups)} groups")
        points = {group: [i for i, other in enumerate(groups) if other == group] for group in groups}
        return mean_interval([_least_squares(first[i], second[i]) for i in points.values()], confidence)
    estimate, n = _least_squares(first, second), len(first)
    if n < 3:
        return Interval(estimate, np.nan, np.nan, n)
    residuals = second - second.mean() - estimate * (first - first.mean())
    spread = np.sum((first - first.mean()) ** 2)
    error = np.sqrt(np.sum(residuals**2) / (n - 2) / spread)
    half = float(special.stdtrit(n - 2, 0.5 + confidence / 2) * error)
    return Interval(estimate, estimate - half, estimate + half, n)


def finite(values: ArrayLike, name: str = "values") -> NDArray[np.float64]:
    """Return the values as an array [n]; none, or one that is nan or infinite, raises `UserError`."""
    array = np.atleast_1d(np.asarray(values, dtype=float))
    if array.ndim != 1 or array.size == 0:
        raise UserError(f"{name} must be a list of at least one number, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{name} hold nan or infinity: leave failed trials out first")
    return array


def aligned(a: Values, b: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two arrays [n] in one order: mappings are matched by key, arrays by position.

    Raises:
        UserError: Keys or lengths differ, only one side is a mapping, or a value is not finite.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            odd = sorted(str(key) for key in a.keys() ^ b.keys())
            raise UserError(f"a paired comparison needs the same seeds on both sides, unpaired: {', '.join(odd)}")
        return finite(list(a.values())), finite([b[key] for key in a])
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        raise UserError("a paired comparison needs seeds on both sides or on none")
    first, second = finite(a), finite(b)
    if len(first) != len(second):
        raise UserError(f"a paired comparison needs as many values on both sides, got {len(first)} and {len(second)}")
    return first, second


def _rankable(x: Values, y: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = aligned(x, y)
    if len(first) < 3:
        raise UserError(f"a rank correlation needs at least 3 pairs, got {len(first)}")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        raise UserError("a rank correlation needs values that differ, one side is constant")
    return first, second


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"confidence must lie between 0 and 1, not {confidence}")


def _bootstrap(
    data: tuple[NDArray[np.float64], ...],
    statistic: Callable[..., ArrayLike],
    seed: int,
    confidence: float,
    resamples: int,
) -> tuple[float, float]:
    _check_confidence(confidence)
    for method in ("BCa", "percentile"):  # BCa is undefined where the jackknife shows no skew to correct
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            result = stats.bootstrap(
                data,
                statistic,
                n_resamples=resamples,
                paired=len(data) > 1,
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(seed),
            )
        low, high = (float(bound) for bound in result.confidence_interval)
        if np.isfinite([low, high]).all():
            break
    return low, high


def _rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    ranks = [stats.rankdata(side, axis=axis) for side in (x, y)]
    centred = [rank - rank.mean(axis=axis, keepdims=True) for rank in ranks]
    norm = np.sqrt(np.prod([np.sum(side**2, axis=axis) for side in centred], axis=0))
    covariance = np.sum(centred[0] * centred[1], axis=axis)
    # a resample in which one side is constant says nothing about the order: it counts as no correlation
    return np.divide(covariance, norm, out=np.zeros_like(norm), where=norm > 0)


def _mean_rank_correlation(y: NDArray[np.float64], *scores: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.mean([_rank_correlation(score, y, axis=axis) for score in scores], axis=0)


def _least_squares(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    centred = x - x.mean()
    if not np.any(centred):
        raise UserError("a slope needs at least two different x (in each group)")
    return float(np.sum(centred * y) / np.sum(centred**2))
