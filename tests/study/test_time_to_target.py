"""Time to a fixed accuracy: who gets there when, who never does, and how speed-ups say so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tl_lightning.errors import UserError
from tl_lightning.study.plots import target_times
from tl_lightning.study.time_to_target import final_values, speed_up, time_table, times_to_target

CURVES = {  # validation accuracy by epoch; an epoch of "quick" takes 1 s, of the others 2 s
    ("plain", 0): [0.5, 0.7, 0.8],
    ("plain", 1): [0.6, 0.6, 0.7],
    ("quick", 0): [0.5, 0.8, 0.6],
    ("quick", 1): [0.7, 0.7, 0.7],
    ("never", 0): [0.5, 0.5, 0.5],
    ("never", 1): [0.9, 0.5, 0.5],
}


def curves():
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "epoch": epoch,
            "val/accuracy": value,
            "time/train_seconds": (epoch + 1) * (1.0 if arm == "quick" else 2.0),
        }
        for (arm, seed), values in CURVES.items()
        for epoch, value in enumerate(values)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def results():
    rows = [
        {"arm": arm, "seed": seed, "epochs": 3, "optimizer_steps": 12, "extraction_seconds": 0.5 * (arm == "quick")}
        for arm, seed in CURVES
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def times():
    return times_to_target(curves(), results(), final_values(curves(), "plain"))


def test_the_target_is_what_the_reference_has_at_its_end():
    assert final_values(curves(), "plain") == {0: 0.8, 1: 0.7}
    assert final_values(pd.DataFrame(), "plain") == {}


def test_the_first_epoch_that_reaches_the_target_counts_with_what_was_cached_before(times):
    quick = times[times["arm"] == "quick"].set_index("seed")
    assert quick["seconds"].to_dict() == {0: 2.5, 1: 1.5}
    assert quick["steps"].to_dict() == {0: 8, 1: 4}
    assert quick["epochs_needed"].to_dict() == {0: 2, 1: 1}
    assert quick["reached"].all()


def test_a_trial_that_never_gets_there_is_kept_with_all_of_its_training(times):
    never = times[times["arm"] == "never"].set_index("seed")
    assert never["reached"].to_dict() == {0: False, 1: True}
    assert never.loc[0, "seconds"] == 6
    assert never.loc[0, "steps"] == 12


def test_the_speed_up_is_the_geometric_mean_of_the_pairs(times):
    found = speed_up(times, "quick", "plain")
    assert found.interval.mean == pytest.approx(np.sqrt(6 / 2.5 * 6 / 1.5))
    assert found.interval.n == 2
    assert found.censored == 0
    assert "at most" not in found.format()
    assert speed_up(times, "quick", "plain", "steps").interval.mean == pytest.approx(np.sqrt(12 / 8 * 12 / 4))


def test_a_censored_speed_up_is_an_upper_bound_and_says_so(times):
    found = speed_up(times, "never", "plain")
    assert found.censored == 1
    assert found.interval.mean == pytest.approx(np.sqrt(6 / 6 * 6 / 2))
    assert found.format() == "at most 1.73 (1 of 2 seeds never got there)"


def test_seeds_in_which_the_reference_never_got_there_are_left_out(times):
    assert speed_up(times, "quick", "never").interval.n == 1
    only = times[(times["arm"] != "never") | (times["seed"] == 0)]
    with pytest.raises(UserError, match="no seed of 'never'"):
        speed_up(only, "quick", "never")


def test_the_table_marks_what_was_not_reached(times):
    table = time_table(times, {"never": speed_up(times, "never", "plain")}, ["plain", "never", "absent"])
    assert list(table["arm"]) == ["plain", "never"]
    assert list(table["reached"]) == ["2 of 2 seeds", "1 of 2 seeds"]
    assert table["seconds to it"].str.startswith("over").tolist() == [False, True]
    assert table.loc[0, "speed-up"] == "1 (the reference)"


def test_the_figure_shows_every_trial_and_marks_those_that_never_got_there(times):
    figure = target_times(times, ["plain", "quick", "never"], texts={"quick": "2.4"}, reference="plain")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "quick", "never"]
    hollow = [c for c in axes.collections if len(c.get_offsets()) and (c.get_facecolor()[:, :3] == 1).all()]
    assert [tuple(np.round(c.get_offsets()[0], 2)) for c in hollow] == [(6.0, 1.88)]
    drawn = sum(len(collection.get_offsets()) for collection in axes.collections)
    assert drawn == len(times)
    assert "2.4" in [text.get_text() for text in axes.texts]


def test_no_trial_is_nothing_to_draw(times):
    with pytest.raises(UserError, match="no time to a target"):
        target_times(times.iloc[:0])
