"""Gains by target and how their order agrees with scores, on tables whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tl_lightning.errors import UserError
from tl_lightning.study import transfer_gains
from tl_lightning.study.above_chance import above_chance
from tl_lightning.study.transfer_scores import Score

CLOSE = Score("distance", "a distance", -1, "")
BLIND = Score("blind", "tells the sets apart only", 1, "")
GAIN = [0.1, 0.2, 0.3, 0.5, 0.6, 0.7]


def trials(seeds: int = 3, failed: tuple[str, int] | None = None) -> pd.DataFrame:
    """Six targets in two sets; the distance falls as the gain rises, `blind` is one value a set with some jitter."""
    rows = []
    for number, gain in enumerate(GAIN):
        base, target = "ab"[number // 3], f"{'ab'[number // 3]}{number}"
        for seed in range(seeds):
            common = {"target": target, "set": base, "seed": seed, "status": "ok", "data": target}
            scratch = 0.2 + 0.01 * seed
            rows.append({**common, "arm": f"{target}, s", "method": "s", "m": scratch})
            if (target, seed) != failed:
                scores = {"distance": 1 - gain, "blind": number // 3 - 0.01 * (number % 3)}
                rows.append({**common, "arm": f"{target}, t", "method": "t", "m": scratch + gain, **scores})
    return pd.DataFrame(rows)


def points(**options) -> pd.DataFrame:
    return transfer_gains.gains_by_target(trials(**options), ["t"], "s", "m", [CLOSE, BLIND])


def test_above_chance_is_zero_for_guessing_and_one_for_no_error() -> None:
    assert above_chance(np.diag([3, 9, 1])) == pytest.approx(1)
    assert above_chance([[0, 10], [0, 90]]) == pytest.approx(0)  # always the larger class: accuracy 0.9
    assert above_chance([[5, 5], [0, 2]]) == pytest.approx(0.5)
    assert above_chance([[4, 0, 0], [0, 4, 0], [0, 0, 0]]) == pytest.approx(1)  # no image of the third class
    with pytest.raises(UserError):
        above_chance(np.zeros((2, 2)))


def test_a_row_a_target_with_the_paired_gain() -> None:
    found = points()
    assert found["target"].tolist() == ["a0", "a1", "a2", "b3", "b4", "b5"]
    assert found["t"].tolist() == pytest.approx(GAIN)
    assert found["t low"].tolist() == pytest.approx(GAIN)  # the seeds move both arms alike
    assert found["distance"].tolist() == pytest.approx([1 - gain for gain in GAIN])


def test_failed_trials_leave_their_seed_or_their_target_out() -> None:
    assert len(points(failed=("a1", 2))) == 6
    assert "a1" not in set(points(seeds=1, failed=("a1", 0))["target"])


def test_the_order_of_a_distance_counts_turned() -> None:
    found = transfer_gains.correlations(points(), "t", [CLOSE, BLIND])
    assert found["a distance"].mean == pytest.approx(1)
    assert found["tells the sets apart only"].mean > 0.5
    mean = transfer_gains.mean_correlation(points(), "t", [CLOSE, BLIND])
    assert mean.mean == pytest.approx(np.mean([interval.mean for interval in found.values()]))
    assert mean.low <= mean.mean <= mean.high
    assert mean.n == 6


def test_within_sets_a_score_that_tells_only_the_sets_apart_gets_nothing() -> None:
    found = transfer_gains.correlations_within(points(), "t", [CLOSE, BLIND])
    assert found["a distance"].mean == pytest.approx(1)
    assert found["tells the sets apart only"].mean == pytest.approx(-1)


def test_a_score_that_a_target_lacks_is_left_out() -> None:
    table = trials()
    table.loc[table["target"] == "a0", "distance"] = np.nan
    found = transfer_gains.gains_by_target(table, ["t"], "s", "m", [CLOSE, BLIND])
    assert list(transfer_gains.correlations(found, "t", [CLOSE, BLIND])) == ["tells the sets apart only"]


def test_centred_ranks() -> None:
    ranks = transfer_gains.centred_ranks(pd.Series([5.0, 1, 3, 10, 20]), pd.Series(list("aaabb")))
    assert ranks.tolist() == [1, -1, 0, -1, 1]
