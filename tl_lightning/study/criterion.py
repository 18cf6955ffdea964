"""A published finding, the criterion written before the run, and what this run says of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tl_lightning.study.intervals import Interval

Verdict = Literal["holds", "fails", "not decided"]


@dataclass(frozen=True)
class Criterion:
    """The outcome of one criterion.

    Attributes:
        finding: Identifier of the finding, such as ``8a``.
        claim: The finding in a sentence.
        source: Authors and year.
        published: The published effect, in words and numbers.
        rule: The criterion, as it was written before the run.
        effect: This run's effect with its interval.
        unit: Unit of the effect.
        verdict: What the interval says of the rule.
        note: What limits the comparison; empty where nothing does.
        published_effect: The published effect in this unit, where one number can stand for it.
    """

    finding: str
    claim: str
    source: str
    published: str
    rule: str
    effect: Interval
    unit: str
    verdict: Verdict
    note: str = ""
    published_effect: float | None = None

    def row(self) -> dict[str, Any]:
        """Return the criterion as a flat row for a table."""
        row = asdict(self)
        effect = row.pop("effect")
        return {
            **row,
            "effect": effect["mean"],
            "low": effect["low"],
            "high": effect["high"],
            "n": effect["n"],
        }

    def __str__(self) -> str:
        effect = self.effect.described(self.unit)
        return f"{self.finding} {self.verdict}: {self.claim} ({effect}, n = {self.effect.n}; rule: {self.rule})"
