from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tl_lightning.analysis import pointing_grids
from tl_lightning.study import Report, Settings, Study
from tl_lightning.study.explanation_criteria import criteria, interval_of
from tl_lightning.study.explanations_report import _sanity_maps

FINE, SCRATCH = "fine-tuned", "from scratch"


def results(**columns: tuple[list[float], list[float]]) -> pd.DataFrame:
    """Three seeds of two arms; each column the values of the one and of the other."""
    seeds = {"arm": [FINE] * 3 + [SCRATCH] * 3, "seed": [0, 1, 2] * 2, "status": "ok"}
    return pd.DataFrame({**seeds, **{name: first + second for name, (first, second) in columns.items()}})


def verdicts(frame: pd.DataFrame, tmp_path) -> list[str]:
    study = Study("s", "?", "", lambda settings: [], lambda trial, settings: {}, lambda report: None)
    report = Report(study, Settings(), tmp_path, [], frame, [FINE, SCRATCH])
    criteria(report, FINE, SCRATCH)
    assert [c.finding for c in report.criteria] == ["9a", "9b", "9b", "9c", "9c"]
    assert "nan" not in report.criteria[0].note
    report.markdown()
    return [c.verdict for c in report.criteria]


MISSING = [np.nan] * 3
HOLDING = {
    "gradcam_correlation": ([0.1, 0.0, 0.05], MISSING),
    "explained_images": ([100, 100, 100], MISSING),
    "cka_early": ([0.98, 0.97, 0.99], MISSING),
    "cka_late": ([0.6, 0.65, 0.7], MISSING),
    "cka_twin": ([0.9, 0.91, 0.92], [0.4, 0.5, 0.45]),
    "pointing_share": ([0.6, 0.62, 0.64], MISSING),
    "pointing_share_randomised": ([0.24, 0.25, 0.26], MISSING),
}


def test_all_hold_where_they_should(tmp_path):
    assert verdicts(results(**HOLDING), tmp_path) == ["holds"] * 5


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        (0, {"gradcam_correlation": ([0.8, 0.82, 0.81], MISSING)}),
        (1, {"cka_late": ([0.99, 0.98, 1.0], MISSING)}),
        (2, {"cka_twin": ([0.4, 0.41, 0.42], [0.9, 0.91, 0.92])}),
        (3, {"pointing_share": ([0.3, 0.31, 0.32], MISSING)}),
        (4, {"pointing_share_randomised": ([0.5, 0.51, 0.52], MISSING)}),
    ],
)
def test_each_can_fail_alone(place, changed, tmp_path):
    found = verdicts(results(**{**HOLDING, **changed}), tmp_path)
    assert found[place] == "fails"
    assert found.count("holds") == 4


def test_a_check_that_is_passed_by_flat_maps_is_not_decided(tmp_path):
    some = results(**HOLDING, gradcam_flat=([0.0, 0.2, 0.5], MISSING))
    assert verdicts(some, tmp_path)[0] == "holds"
    most = results(**HOLDING, gradcam_flat=([0.0, 0.2, 0.6], MISSING))
    assert verdicts(most, tmp_path) == ["not decided", "holds", "holds", "holds", "not decided"]


def test_what_was_not_measured_is_not_decided(tmp_path):
    assert verdicts(results(), tmp_path) == ["not decided"] * 5
    no_scratch = results(**HOLDING)[lambda frame: frame["arm"] == FINE]
    assert verdicts(no_scratch, tmp_path) == ["holds", "holds", "not decided", "holds", "holds"]


def test_an_interval_leaves_out_seeds_that_were_not_measured():
    frame = results(pointing_share=([0.5, np.nan, 0.7], MISSING))
    assert interval_of(frame, FINE, "pointing_share").n == 2
    assert interval_of(frame, FINE, "pointing_share").mean == pytest.approx(0.6)
    assert interval_of(frame, SCRATCH, "pointing_share").n == 0


@pytest.mark.parametrize("guided", [True, False])
def test_names_of_methods_stand_above_maps_and_no_cell_is_empty(guided):
    arrays = {"images": np.zeros((2, 3, 8, 8), np.float32), "grad_cam": np.ones((2, 2, 8, 8), np.float32)}
    arrays |= {"guided": np.ones((2, 2, 8, 8), np.float32)} if guided else {}
    axes = _sanity_maps(arrays, ["head"]).axes
    width = len(axes) // 3
    assert width == (4 if guided else 2)
    assert all(place.images for place in axes)
    assert {place.get_title() for place in axes[:width]} == {""}
    names = ["Grad-CAM"] * 2 + ["guided backprop."] * (2 if guided else 0)
    assert [place.get_title() for place in axes[width : 2 * width]] == names


def test_a_grid_holds_an_image_twice_only_where_its_class_has_too_few():
    labels = np.repeat([0, 1], [3, 3])
    images = np.zeros((6, 3, 4, 4), np.float32)
    members = pointing_grids(images, labels, 40).members
    assert all(len(set(row)) == 4 for row in members.tolist())
    assert set(members.ravel()) == set(range(6))
    few = pointing_grids(images[2:], labels[2:], 8).members  # one image of class 0 is to fill three cells
    assert any(len(set(row)) == 2 for row in few.tolist())
