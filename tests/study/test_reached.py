"""When a curve reaches a value; steps as epochs; learning rates of an arm's own."""

from __future__ import annotations

import pandas as pd
import pytest

from tl_lightning.errors import UserError
from tl_lightning.study.budget import check_rates, epochs_for, rates
from tl_lightning.study.reached import first_reached, race, race_sentence, with_images_seen


@pytest.fixture
def curves():
    """Two arms at two seeds; ``fine`` is there in its first epoch at seed 0 and never at seed 1."""
    values = {
        ("fine", 0): [0.8, 0.9],
        ("fine", 1): [0.2, 0.3],
        ("slow", 0): [0.1, 0.5, 0.7],
        ("slow", 1): [0.4, 0.4, 0.6],
    }
    rows = [
        {"arm": arm, "seed": seed, "epoch": epoch, "seconds": epoch + 1.0, "val/accuracy": value}
        for (arm, seed), column in values.items()
        for epoch, value in enumerate(column)
    ]
    results = pd.DataFrame([{"arm": arm, "seed": seed, "train_images": 50 + 50 * seed} for arm, seed in values])
    return with_images_seen(pd.DataFrame(rows), results)


def test_images_seen_count_repeats(curves):
    assert list(curves[(curves["arm"] == "slow") & (curves["seed"] == 1)]["images_seen"]) == [100, 200, 300]


def test_the_first_epoch_at_the_value_counts(curves):
    found = first_reached(curves, "val/accuracy", 0.5).set_index(["arm", "seed"])["images_seen"]
    assert found["fine", 0] == 50
    assert found["slow", 0] == 100
    assert found["slow", 1] == 300
    assert pd.isna(found["fine", 1])


def test_a_race_is_against_the_best_of_the_same_seed(curves):
    found = race(curves, "fine", "slow").set_index("seed")
    assert found.loc[0, ["value", "images_seen", "reference_images_seen"]].tolist() == [0.7, 50, 150]
    assert pd.isna(found.loc[1, "images_seen"])
    assert "in 1 of 2 seeds (70.0 % on average over these), after 50 images" in race_sentence(curves, "fine", "slow")
    assert race_sentence(curves[curves["seed"] == 1], "fine", "slow").startswith("In none of 1 seeds")


def test_a_race_without_a_partner_has_no_row(curves):
    assert race(curves[curves["arm"] == "fine"], "fine", "slow").empty


@pytest.mark.parametrize(("steps", "images", "epochs"), [(32, 100, 8), (33, 100, 9), (1, 100, 1), (10, 5, 10)])
def test_steps_are_rounded_up_to_epochs(steps, images, epochs):
    assert epochs_for(steps, images, batch_size=32) == epochs


def test_as_many_rates_as_the_others():
    check_rates("--own-rates", [0.1, 0.2], 2)
    assert rates(0.1) == [0.1]
    for wrong, message in (
        ([0.1], "names 1 where the other arms try 2"),
        ([0.1, 0.1], "distinct"),
        ([0.1, -1], "above 0"),
    ):
        with pytest.raises(UserError, match=f"--own-rates.*{message}"):
            check_rates("--own-rates", wrong, 2)
