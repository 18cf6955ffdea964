"""The crossed design of near and far: what cancels, what is refused. Training itself is in tests/experiments."""

from __future__ import annotations

import pandas as pd
import pytest

from tl_lightning.errors import UserError
from tl_lightning.study import near_far
from tl_lightning.study.domain_criteria import gain_shrinks, near_beats_far, published_accuracy
from tl_lightning.study.intervals import Interval


def results(distance: float, quality: float, hardness: float) -> pd.DataFrame:
    """Accuracies made of a source's quality, a target's hardness and a loss with distance, three seeds."""
    rows = []
    for arm in near_far.crossed_arms(["probe"]):
        source, target = arm.factors["source"], arm.factors["to"]
        value = 0.5 + quality * (source == "A") - hardness * (target == "A") - distance * (source != target)
        rows += [{"arm": arm.name, "seed": seed, "data": target, "m": value + 0.01 * seed} for seed in range(3)]
    return pd.DataFrame(rows)


def test_quality_of_a_source_and_hardness_of_a_target_cancel() -> None:
    for quality, hardness in ((0, 0), (0.2, 0.1), (-0.3, 0.2)):
        gaps = near_far.near_minus_far(results(0.15, quality, hardness), "probe", "m")
        assert gaps == pytest.approx({0: 0.15, 1: 0.15, 2: 0.15})


def test_an_arm_or_a_seed_that_is_missing_is_left_out() -> None:
    table = results(0.1, 0, 0)
    assert near_far.near_minus_far(table[table["arm"] != near_far.arm_name("A", "B", "probe")], "probe", "m") == {}
    assert set(near_far.near_minus_far(table.iloc[1:], "probe", "m")) == {1, 2}


def test_domains_by_text() -> None:
    first, second = near_far.parse_domains(["digits = 0, 1 -> 2,3,4", "digits:fog:2 = 5,6 -> 7,8"])
    assert (first.known, first.wanted) == (("0", "1"), ("2", "3", "4"))
    assert (second.images.shift, second.images.severity) == ("fog", 2)
    assert near_far.parse_domains([]) == []
    with pytest.raises(UserError, match="must be written"):
        near_far.parse_domains(["digits = 0,1", "digits = 0,1 -> 2,3"])


def test_the_criteria_can_hold_and_fail() -> None:
    gap, none = {0: 0.2, 1: 0.22, 2: 0.21}, {0: 0.001, 1: -0.001, 2: 0.0}
    assert [c.verdict for c in near_beats_far(gap, none, [])] == ["holds", "holds"]
    assert [c.verdict for c in near_beats_far(none, gap, [])] == ["not decided", "fails"]
    two = [{seed: gaps[seed] for seed in (0, 1)} for gaps in (gap, none)]
    assert [c.verdict for c in near_beats_far(*two, [])] == ["not decided", "not decided"]  # too few seeds
    assert [c.verdict for c in near_beats_far({}, {}, [])] == ["not decided", "not decided"]
    assert gain_shrinks(Interval(-0.1, -0.2, -0.05, 3), "elpv", [10, 100]).verdict == "holds"
    assert gain_shrinks(Interval(0.1, 0.05, 0.2, 3), "elpv", [10, 100]).verdict == "fails"
    assert gain_shrinks(None, "elpv", []).verdict == "not decided"


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [([0.89, 0.90, 0.89], "holds"), ([0.84, 0.85, 0.84], "fails"), ([0.95], "not decided"), ([], "not decided")],
)
def test_the_published_accuracy(accuracies, verdict) -> None:
    found = published_accuracy(accuracies)
    assert (found.verdict, found.published_effect) == (verdict, 88.4)
