"""Measurements of contenders in one run, interleaved, and the targets that they are held to."""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Run = Callable[[], object]
Prepare = Callable[[], Run]  # builds what is not timed and returns what is


@dataclass(frozen=True)
class Row:
    """The values of one contender.

    Args:
        scenario: For example ``S1``.
        contender: Who, or what else was measured.
        unit: Of the values.
        values: One a repeat.
        x: The size that was varied, where the scenario varies one.
    """

    scenario: str
    contender: str
    unit: str
    values: list[float]
    x: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Target:
    """A bound, and what was measured."""

    scenario: str
    what: str
    value: float | None
    bound: float
    sense: Literal["at most", "at least"]

    @property
    def verdict(self) -> str:
        """``met``, ``NOT met``, or why there is no verdict."""
        if self.value is None:
            return "not measured"
        met = self.value <= self.bound if self.sense == "at most" else self.value >= self.bound
        return "met" if met else "NOT met"


@dataclass
class Result:
    """What a scenario found.

    Args:
        scenario: For example ``S1``.
        title: What was measured, for table and chart.
        rows: The measurements.
        targets: What they are held to.
        notes: Anything the reader must know.
        reference: The contender that ratios are taken to.
    """

    scenario: str
    title: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reference: str | None = None

    def row(self, contender: str) -> Row | None:
        """Return the measurements of a contender, None if it did not take part."""
        return next((row for row in self.rows if row.contender == contender), None)

    def median(self, contender: str) -> float | None:
        """Return the median of a contender."""
        row = self.row(contender)
        return row.median if row is not None else None

    def best(self, contenders: Mapping[str, str] | list[str], highest: bool = False) -> float | None:
        """Return the best median of some contenders."""
        medians = [m for name in contenders if (m := self.median(name)) is not None]
        return (max if highest else min)(medians) if medians else None


def ratio(value: float | None, reference: float | None) -> float | None:
    """Return the ratio, None where one of them was not measured."""
    return value / reference if value is not None and reference else None


def interleave(
    contenders: Mapping[str, Prepare], repeats: int, measure: Callable[[Run], float] | None = None
) -> dict[str, list[float]]:
    """Run every contender once a round, in an order that changes from round to round.

    Args:
        contenders: Name to what makes a run.
        repeats: Rounds.
        measure: Runs a run and returns its value; the seconds that it takes by default.

    Returns:
        Name to the values.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffler = random.Random(0)
    for repeat in range(repeats):
        shuffler.shuffle(order)
        for name in order:
            run = contenders[name]()
            gc.collect()
            values[name].append((measure or timed)(run))
            print(f"  {repeat + 1}/{repeats} {name:44s} {values[name][-1]:10.3f}", file=sys.stderr, flush=True)
    return values


def timed(run: Run) -> float:
    """Return the seconds that a run takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
