"""The gain of transfer on each target beside its scores, and how their orders agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_lightning.errors import UserError
from tl_lightning.study.comparison import gain
from tl_lightning.study.intervals import Interval, mean_interval
from tl_lightning.study.statistics import mean_spearman, spearman
from tl_lightning.study.transfer_scores import SCORES, Score


def gains_by_target(
    results: pd.DataFrame, methods: Sequence[str], reference: str, metric: str, scores: Sequence[Score] = SCORES
) -> pd.DataFrame:
    """Return a row for each target on which all methods ended with at least one seed.

    Args:
        results: Trials with the columns ``target``, ``set``, ``method``, the metric and the scores.
        methods: The methods whose gain is asked for.
        reference: What they are compared with.
        metric: The column.
        scores: Those to take along, the mean over the trials that measured them.

    Returns:
        Columns ``target``, ``set``; for each method ``METHOD``, ``METHOD low`` and ``METHOD high``: gain with its 95 %
        interval over the seeds; for each score its column, with `` low`` and `` high``.
    """
    rows = []
    for target, trials in results.groupby("target", sort=False):
        names = dict(zip(trials["method"], trials["arm"], strict=True))
        row: dict[str, Any] = {"target": target, "set": trials["set"].iloc[0]}
        try:
            for method in methods:
                pair = (names.get(method, method), names.get(reference, reference))
                row |= _with_bounds(method, mean_interval(list(gain(results, pair, metric).values())))
        except UserError:  # trials failed: there is no gain to tell
            continue
        for score in scores:
            if score.column in trials and np.isfinite(trials[score.column].astype(float)).any():
                values = trials[score.column].astype(float)
                row |= _with_bounds(score.column, mean_interval(values[np.isfinite(values)]))
        rows.append(row)
    return pd.DataFrame(rows)


def correlations(points: pd.DataFrame, method: str, scores: Sequence[Score] = SCORES) -> dict[str, Interval]:
    """Return by score the rank correlation with the gain over the targets, turned so that above 0 is as expected."""
    found = {}
    for score in complete(points, scores):
        found[score.name] = spearman(score.sign * points[score.column], points[method])
    return found


def mean_correlation(points: pd.DataFrame, method: str, scores: Sequence[Score] = SCORES) -> Interval:
    """Return the rank correlation averaged over the scores that are known before training, turned as above."""
    known = [score for score in complete(points, scores) if score.predicts]
    turned = {score.name: score.sign * points[score.column] for score in known}
    return mean_spearman(turned, points[method])


def correlations_within(points: pd.DataFrame, method: str, scores: Sequence[Score] = SCORES) -> dict[str, Interval]:
    """Return the same within sets: ranks among the variants of one set, all sets together.

    Sets of a single variant say nothing here and are left out.
    """
    several = points[points.groupby("set")["target"].transform("size") > 1]
    found: dict[str, Interval] = {}
    if len(several) < 3:
        return found
    gains = centred_ranks(several[method], several["set"])
    for score in complete(several, scores):
        ranks = centred_ranks(score.sign * several[score.column], several["set"])
        if np.ptp(ranks) > 0 and np.ptp(gains) > 0:
            found[score.name] = spearman(ranks, gains)
    return found


def centred_ranks(values: pd.Series, groups: pd.Series) -> NDArray[np.float64]:
    """Return the ranks within each group, from -1 to 1, 0 in the middle."""
    ranks, sizes = values.groupby(groups).rank(), groups.groupby(groups).transform("size")
    return (2 * (ranks - (sizes + 1) / 2) / (sizes - 1)).to_numpy(dtype=float)


def rankable(points: pd.DataFrame, methods: Sequence[str]) -> bool:
    """Return whether there are targets enough, with gains that differ, to ask for a rank correlation."""
    return len(points) >= 3 and all(np.ptp(points[method]) > 0 for method in methods) and bool(complete(points))


def complete(points: pd.DataFrame, scores: Sequence[Score] = SCORES) -> list[Score]:
    """Return the scores that were measured on every target and differ between them."""
    return [
        score
        for score in scores
        if score.column in points and points[score.column].notna().all() and np.ptp(points[score.column]) > 0
    ]


def gain_table(
    trials: pd.DataFrame, points: pd.DataFrame, methods: Sequence[str], gains: Mapping[str, str]
) -> pd.DataFrame:
    """Return a row a target: the test accuracy of each method, each gain in points with its interval."""
    means = trials.groupby(["target", "method"])["test_accuracy"].mean()
    rows = []
    for _, point in points.iterrows():
        row = {"target": point["target"], **{method: f"{means[point['target'], method]:.3f}" for method in methods}}
        for method, name in gains.items():
            mean, low, high = (100 * point[f"{method}{end}"] for end in ("", " low", " high"))
            row[name] = f"{mean:+.0f} [{low:+.0f}, {high:+.0f}]" if np.isfinite(low) else f"{mean:+.0f} (1 seed)"
        rows.append(row)
    return pd.DataFrame(rows)


def score_table(points: pd.DataFrame, scores: Sequence[Score] = SCORES) -> pd.DataFrame:
    """Return a row a target with its scores."""
    shown = {score.column: score.name for score in scores if score.column in points}
    return points[["target", *shown]].rename(columns=shown)


def sentence(found: Mapping[str, Interval], gain: str) -> str:
    """Return what may be said of a gain's correlations: claims only where the interval lies on one side of 0."""
    shown = [score for score, interval in found.items() if interval.low > 0]
    against = [score for score, interval in found.items() if interval.high < 0]
    best = max(found, key=lambda score: found[score].mean)
    contrary = f"; against expectation with {', '.join(against)}" if against else ""
    return (
        f"The order of the {gain} over {found[best].n} targets goes with {', '.join(shown) or 'no score'} (interval "
        f"above 0){contrary}. The highest rank correlation is {found[best].format(2)}, {best}. Where an "
        "interval holds 0 nothing is claimed."
    )


def text(interval: Interval | None) -> str:
    """Return a correlation as text, without its interval: a few sets are too few to resample."""
    return "n/a" if interval is None else f"{interval.mean:+.2f} (n = {interval.n})"


def scatter_frame(points: pd.DataFrame, x: str, y: str, scale: float = 1.0) -> pd.DataFrame:
    """Return the columns that ``plots.named_points`` draws: a score against a gain, the latter scaled."""
    columns: Mapping[str, Any] = {
        "name": points["target"],
        "group": points["set"],
        **{f"x{end}": points[f"{x}{end.replace('_', ' ')}"] for end in ("", "_low", "_high")},
        **{f"y{end}": scale * points[f"{y}{end.replace('_', ' ')}"] for end in ("", "_low", "_high")},
    }
    return pd.DataFrame(columns)


def _with_bounds(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name} low": interval.low, f"{name} high": interval.high}
