"""Arms are compared in pairs, and only where they saw the same data."""

from __future__ import annotations

import pandas as pd
import pytest

from tl_lightning.errors import UserError
from tl_lightning.study.comparison import by_seed, compare, compare_all


def results(**columns):
    frame = pd.DataFrame(
        {
            "arm": ["a"] * 3 + ["b"] * 3,
            "seed": [0, 1, 2] * 2,
            "test_accuracy": [0.5, 0.6, 0.7, 0.6, 0.71, 0.79],
            "test_fingerprint": ["t"] * 6,
            "data_fingerprint": ["x", "y", "z"] * 2,
        }
    )
    return frame.assign(**columns)


def test_pairs_are_matched_by_seed():
    shuffled = results().sample(frac=1, random_state=0)
    comparison = compare(shuffled, "b", "a", "test_accuracy")
    assert comparison.difference.mean == pytest.approx(0.1)
    assert comparison.n == 3
    assert comparison.verdict == "higher"


def test_a_seed_that_one_arm_lacks_is_left_out():
    assert compare(results().iloc[:-1], "b", "a", "test_accuracy").n == 2


@pytest.mark.parametrize("column", ["data_fingerprint", "test_fingerprint"])
def test_arms_that_saw_different_data_are_refused(column):
    frame = results()
    frame.loc[4, column] = "other"
    with pytest.raises(UserError, match=f"{column} differs at seed 1"):
        compare(frame, "b", "a", "test_accuracy")


def test_two_records_of_one_seed_are_refused():
    frame = pd.concat([results(), results().iloc[:1]])
    with pytest.raises(UserError, match="more than one record"):
        by_seed(frame, "a", "test_accuracy")


def test_all_arms_are_compared_with_the_reference():
    assert set(compare_all(results(), "a", "test_accuracy")) == {"b"}
