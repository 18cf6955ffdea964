"""Arms are compared in pairs, and only where they saw the same data."""

from __future__ import annotations

import pandas as pd
import pytest

from tl_lightning import study
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


def growing(effect_at):
    """Two arms at 10 and 100 images; the gain at each level by seed."""
    rows = [
        {"arm": f"{method} {size}", "seed": seed, "status": "ok", "acc": base + (gain[seed] if method == "new" else 0)}
        for size, gain in effect_at.items()
        for method in ("new", "old")
        for seed, base in enumerate((0.5, 0.6, 0.55))
    ]
    return pd.DataFrame(rows), {size: (f"new {size}", f"old {size}") for size in effect_at}


def test_the_trend_of_a_gain_is_its_change_for_a_tenfold_level():
    results, pairs = growing({10: (0.30, 0.32, 0.28), 100: (0.20, 0.21, 0.19)})
    trend = study.gain_trend(results, pairs, "acc")
    assert trend.mean == pytest.approx(-0.10)
    assert trend.n == 3
    assert trend.low < -0.10 < trend.high < 0


def test_the_contrast_of_two_gains_is_paired_by_seed():
    results, pairs = growing({10: (0.30, 0.32, 0.28), 100: (0.20, 0.22, 0.18)})
    contrast = study.contrast(results, pairs[10], pairs[100], "acc")
    assert contrast.difference.mean == pytest.approx(0.10)
    assert contrast.difference.high - contrast.difference.low < 1e-9  # the seeds' spread cancels
    assert contrast.verdict == "higher"


def test_a_gain_needs_shared_seeds():
    results, pairs = growing({10: (0.3, 0.3, 0.3)})
    with pytest.raises(UserError, match="share no seed"):
        study.gain(results[results["arm"] != "old 10"], pairs[10], "acc")
