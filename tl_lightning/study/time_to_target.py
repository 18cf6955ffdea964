"""When each trial reaches a validation accuracy that was fixed before: seconds, steps, and speed-ups between arms."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tl_lightning.callbacks.training_clock import NAME as CLOCK
from tl_lightning.errors import UserError
from tl_lightning.study.intervals import Interval
from tl_lightning.study.statistics import paired_ratio, shared

METRIC = "val/accuracy"


@dataclass(frozen=True)
class SpeedUp:
    """How many times sooner an arm reaches the target than its reference.

    Attributes:
        interval: Geometric mean over the seeds with the t interval of the logarithms. A seed that never reached the
            target counts with all of its training: then this is an upper bound.
        censored: Seeds of the arm that never reached it.
    """

    interval: Interval
    censored: int

    def format(self) -> str:
        """Return text such as ``1.8 [1.2, 2.7] (n = 3)`` or ``at most 0.9 (2 of 3 seeds never got there)``."""
        if self.censored:
            return f"at most {self.interval.mean:.2f} ({self.censored} of {self.interval.n} seeds never got there)"
        return self.interval.format(2)


def clock_seconds(record: Mapping[str, Any]) -> float:
    """Return the seconds of all training of a trial, with those of caching features; see ``TrainingClock``."""
    return float(record["curve"][-1][CLOCK]) + float(record["extraction_seconds"])


def final_values(curves: pd.DataFrame, arm: str, metric: str = METRIC) -> dict[Hashable, float]:
    """Return the metric after the last epoch of each seed of an arm."""
    rows = _rows(curves, arm, metric).sort_values("epoch").groupby("seed")[metric].last()
    return {int(seed): float(value) for seed, value in rows.items()}  # type: ignore[call-overload]


def times_to_target(
    curves: pd.DataFrame, results: pd.DataFrame, targets: Mapping[Hashable, float], metric: str = METRIC
) -> pd.DataFrame:
    """Return for each trial when it first validates at the target of its seed.

    Args:
        curves: Columns ``arm``, ``seed``, ``epoch`` (from 0), ``time/train_seconds`` (see ``TrainingClock``) and the
            metric, as of ``Report.curves``.
        results: Columns ``arm``, ``seed``, ``extraction_seconds`` (spent before the first step, so they count from the
            start), ``optimizer_steps`` and ``epochs``.
        targets: The value to reach, by seed.

    Returns:
        A row for each trial whose seed has a target: ``arm``, ``seed``, ``target``, ``reached``, and ``seconds``,
        ``steps``, ``epochs_needed`` up to the end of the epoch that reaches it, or of the last epoch where none does.
    """
    rows = []
    for trial in results.to_dict("records"):
        curve = curves[(curves["arm"] == trial["arm"]) & (curves["seed"] == trial["seed"])].sort_values("epoch")
        if trial["seed"] not in targets or curve.empty:
            continue
        target = targets[trial["seed"]]
        there = curve[curve[metric] >= target]
        row = there.iloc[0] if len(there) else curve.iloc[-1]
        epochs = int(row["epoch"]) + 1
        rows.append(
            {
                "arm": trial["arm"],
                "seed": trial["seed"],
                "target": target,
                "reached": bool(len(there)),
                "seconds": float(row[CLOCK]) + float(trial["extraction_seconds"]),
                "steps": epochs * trial["optimizer_steps"] / trial["epochs"],
                "epochs_needed": epochs,
            }
        )
    columns = ["arm", "seed", "target", "reached", "seconds", "steps", "epochs_needed"]
    return pd.DataFrame(rows, columns=columns)


def speed_up(times: pd.DataFrame, arm: str, reference: str, cost: str = "seconds") -> SpeedUp:
    """Return how many times less of a cost than its reference an arm needs to the target, paired by seed.

    Args:
        times: As of ``times_to_target``.
        arm: The arm.
        reference: The arm to compare with; seeds in which it never reached the target are left out.
        cost: ``seconds`` or ``steps``.

    Raises:
        UserError: They share no seed in which the reference reached the target.
    """
    own = times[times["arm"] == arm].set_index("seed")
    other = times[(times["arm"] == reference) & times["reached"]].set_index("seed")
    slow, quick = shared(other[cost].to_dict(), own[cost].to_dict())
    if not quick:
        raise UserError(f"no seed of {reference!r} that reached its target has a trial of {arm!r}")
    reached = own["reached"].to_dict()
    return SpeedUp(paired_ratio(slow, quick), sum(not reached[seed] for seed in quick))


def time_table(times: pd.DataFrame, speed_ups: Mapping[str, SpeedUp], arms: list[str]) -> pd.DataFrame:
    """Return a row for each arm: seeds that reached the target, seconds and steps to it, speed-up."""
    rows = []
    for arm in arms:
        own = times[times["arm"] == arm]
        if own.empty:
            continue
        there = own[own["reached"]]
        late = len(own) - len(there)
        rows.append(
            {
                "arm": arm,
                "reached": f"{len(there)} of {len(own)} seeds",
                "seconds to it": _mean(there["seconds"], late, own["seconds"]),
                "steps to it": _mean(there["steps"], late, own["steps"]),
                "speed-up": speed_ups[arm].format() if arm in speed_ups else "1 (the reference)",
            }
        )
    return pd.DataFrame(rows)


def _mean(reached: pd.Series, late: int, every: pd.Series) -> str:
    """Return the geometric mean, with a sign where seeds that never got there make it a lower bound."""
    values = every if late else reached
    return f"{'over ' if late else ''}{math.exp(np.log(values).mean()):.3g}"


def _rows(curves: pd.DataFrame, arm: str, metric: str) -> pd.DataFrame:
    if curves.empty or metric not in curves:
        return pd.DataFrame({"epoch": [], "seed": [], metric: []})
    return curves[(curves["arm"] == arm) & curves[metric].notna()]
