"""How many times more images a reference needs."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_lightning.errors import UserError
from tl_lightning.study import statistics
from tl_lightning.study.data_multiplier import effective_data, images_needed

CURVE = {10: "s10", 100: "s100", 1000: "s1000"}


def table(values: dict[str, list[float]]) -> pd.DataFrame:
    """A row for each arm and seed."""
    rows = [{"arm": a, "seed": s, "test_accuracy": v} for a, vs in values.items() for s, v in enumerate(vs)]
    return pd.DataFrame(rows)


def test_a_number_is_interpolated_in_its_logarithm():
    assert images_needed({10: 0.5, 1000: 0.9}, 0.7) == pytest.approx(100)
    assert images_needed({10: 0.5, 100: 0.7, 1000: 0.9}, 0.7) == pytest.approx(100)
    assert images_needed({10: 0.5, 1000: 0.9}, 0.5) == pytest.approx(10)


def test_the_first_of_equal_values_counts():
    assert images_needed({10: 0.5, 100: 0.9, 1000: 0.9}, 0.9) == pytest.approx(100)


def test_a_curve_that_falls_by_chance_is_made_to_rise():
    # 100 and 1000 change places: both count as 0.7, the mean of the two
    assert images_needed({10: 0.5, 100: 0.8, 1000: 0.6}, 0.7) == pytest.approx(100)
    assert images_needed({10: 0.5, 100: 0.8, 1000: 0.6}, 0.75) == math.inf


@given(
    st.dictionaries(st.integers(1, 10**6), st.floats(0, 1), min_size=2, max_size=6),
    st.floats(-0.5, 1.5),
    st.floats(0, 0.5),
)
def test_more_is_never_reached_with_fewer(numbers, value, more):
    less, much = images_needed(numbers, value), images_needed(numbers, value + more)
    assert less <= much * (1 + 1e-9) if math.isfinite(much) else less <= much
    if math.isfinite(less):
        assert min(numbers) * (1 - 1e-9) <= less <= max(numbers) * (1 + 1e-9)


def test_the_multiplier_is_the_geometric_mean_over_seeds():
    results = table({"fine": [0.7, 0.7], "s10": [0.5, 0.7], "s100": [0.7, 0.8], "s1000": [0.9, 0.9]})
    found = effective_data(results, "fine", 10, CURVE)
    assert found.by_seed == pytest.approx({0: 10.0, 1: 1.0})
    assert found.interval.mean == pytest.approx(math.sqrt(10))
    assert not found.never
    assert not found.always
    assert found.interval.low < found.interval.mean < found.interval.high


def test_a_reference_that_never_gets_there_gives_a_lower_bound():
    values = {"fine": [0.95, 0.95, 0.95], "s10": [0.5] * 3, "s100": [0.7] * 3, "s1000": [0.9] * 3}
    found = effective_data(table(values), "fine", 10, CURVE)
    assert found.never == [0, 1, 2]
    assert found.interval.mean == pytest.approx(100)
    assert found.format().startswith("at least 100.0")
    assert statistics.decide(found.interval, 3, "above") == "not decided"


def test_one_seed_that_never_gets_there_leaves_no_interval():
    """Its true value may lie so far beyond that an interval would hold 1: a clamped one is no bound."""
    values = {"fine": [0.95, 0.7, 0.72], "s10": [0.5] * 3, "s100": [0.7] * 3, "s1000": [0.9] * 3}
    found = effective_data(table(values), "fine", 10, CURVE)
    assert found.never == [0]
    assert math.isnan(found.interval.low)
    assert math.isnan(found.interval.high)
    assert found.interval.mean > 10


def test_a_reference_that_is_better_at_once_gives_an_upper_bound():
    values = {"fine": [0.4, 0.4], "s10": [0.5] * 2, "s100": [0.7] * 2, "s1000": [0.9] * 2}
    found = effective_data(table(values), "fine", 10, CURVE)
    assert found.always == [0, 1]
    assert found.format().startswith("at most 1.0")
    assert statistics.decide(found.interval, 3, "above") == "not decided"


def test_bounds_on_both_sides_decide_nothing():
    values = {"fine": [0.4, 0.95], "s10": [0.5] * 2, "s100": [0.7] * 2, "s1000": [0.9] * 2}
    found = effective_data(table(values), "fine", 10, CURVE)
    assert statistics.decide(found.interval, 3, "above") == "not decided"
    assert found.format().startswith("undetermined")


def test_a_seed_that_lacks_a_size_is_left_out_and_none_is_an_error():
    values = {"fine": [0.7, 0.7], "s10": [0.5, 0.7], "s100": [0.7], "s1000": [0.9, 0.9]}
    assert list(effective_data(table(values), "fine", 10, CURVE).by_seed) == [0]
    with pytest.raises(UserError, match="no seed"):
        effective_data(table({"fine": [0.7]}), "fine", 10, CURVE)


def test_one_size_is_no_curve():
    with pytest.raises(UserError, match="two numbers"):
        images_needed({10: 0.5}, 0.5)
