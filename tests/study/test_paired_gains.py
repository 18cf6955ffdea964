"""Gains of several pairs of arms, by hand; arms that lack seeds; budgets of equal steps; tables of two factors."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from tl_lightning import study
from tl_lightning.study.statistics import decide

VALUES = {  # arm -> accuracy at seeds 0, 1, 2
    "new 10": (0.60, 0.62, 0.64),
    "old 10": (0.50, 0.54, 0.52),
    "new 100": (0.90, 0.91, 0.92),
    "old 100": (0.86, 0.85, 0.90),
}
FEW, MANY = ("new 10", "old 10"), ("new 100", "old 100")


def frame(without: tuple[tuple[str, int], ...] = ()) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed, "acc": value, "method": arm.split()[0], "size": int(arm.split()[1])}
        for arm, values in VALUES.items()
        for seed, value in enumerate(values)
        if (arm, seed) not in without
    ]
    return pd.DataFrame(rows)


def test_the_mean_gain_averages_the_pairs_at_each_seed():
    found = study.mean_gain(frame(), [FEW, MANY], "acc")
    by_seed = [(0.10 + 0.04) / 2, (0.08 + 0.06) / 2, (0.12 + 0.02) / 2]
    assert found.n == 3
    assert found.mean == pytest.approx(sum(by_seed) / 3)
    assert found.high - found.low == pytest.approx(0, abs=1e-9)  # 0.07 at each seed


def test_a_seed_that_lacks_an_arm_is_left_out_of_means_and_contrasts():
    results = frame(without=(("old 100", 2),))
    assert study.mean_gain(results, [FEW, MANY], "acc").n == 2
    contrast = study.mean_contrast(results, [FEW], [MANY], "acc")
    assert contrast.n == 2
    assert contrast.mean == pytest.approx(((0.10 - 0.04) + (0.08 - 0.06)) / 2)
    other = study.contrast_interval(results, FEW, MANY, "acc")
    assert (contrast.mean, contrast.low, contrast.high) == pytest.approx((other.mean, other.low, other.high))


def test_the_contrast_of_means_is_that_of_the_averaged_gains():
    found = study.mean_contrast(frame(), [FEW, MANY], [MANY, MANY], "acc")
    want = [(few - many) / 2 for few, many in ((0.10, 0.04), (0.08, 0.06), (0.12, 0.02))]
    assert found.mean == pytest.approx(sum(want) / 3)


def test_without_a_shared_seed_nothing_is_decided():
    results = frame(without=tuple(("old 10", seed) for seed in range(3)))
    found = [
        study.gain_interval(results, FEW, "acc"),
        study.mean_gain(results, [FEW, MANY], "acc"),
        study.mean_contrast(results, [FEW], [MANY], "acc"),
        study.contrast_interval(results, FEW, MANY, "acc"),
    ]
    for interval in found:
        assert interval.n == 0
        assert math.isnan(interval.mean)
        assert {decide(interval, 0.0, way) for way in ("above", "below")} == {"not decided"}
    assert list(study.comparisons(results, {10: FEW, 100: MANY}, "acc")) == [100]


def test_comparisons_are_those_of_the_pairs():
    found = study.comparisons(frame(), {10: FEW, 100: MANY}, "acc")
    assert found[10].difference.mean == pytest.approx(0.10)
    assert found[100] == study.compare(frame(), *MANY, "acc")


@pytest.mark.parametrize(
    ("images", "epochs", "every"),
    [(500, 3, 1), (100, 12, 1), (20, 48, 6), (10, 48, 6)],
)
def test_small_sets_take_as_many_steps_as_the_largest(images, epochs, every):
    budget = study.equal_steps(images, 500, SimpleNamespace(epochs=3, batch_size=32))
    assert (budget.epochs, budget.validate_every) == (epochs, every)
    assert budget.epochs % budget.validate_every == 0
    assert [callback.epochs for callback in budget.callbacks()] == [every]


def test_rounding_to_whole_validations_never_shortens_the_training():
    for images in range(2, 400, 7):
        budget = study.equal_steps(images, 400, SimpleNamespace(epochs=7, batch_size=16))
        assert budget.epochs * math.ceil(images / 16) >= 7 * 25
        assert budget.epochs % budget.validate_every == 0


def test_a_table_of_two_factors_holds_means_with_intervals():
    table = study.grid_table(frame(), "method", "size", "acc", order=["old", "new", "none"], column_text="{} a class")
    assert table["method"].tolist() == ["old", "new"]
    assert list(table.columns) == ["method", "10 a class", "100 a class"]
    assert table.loc[1, "10 a class"] == "62.0 [57.0, 67.0]"
    missing = frame(without=tuple(("old 100", seed) for seed in range(3)))
    plain = study.grid_table(missing, "method", "size", "acc", factor=1, digits=2, interval=False)
    assert plain.set_index("method").loc["old"].tolist() == ["0.52", "n/a"]
