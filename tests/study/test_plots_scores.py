"""The figures of scores: every target named, no label on another, decided intervals filled."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tl_lightning.errors import UserError
from tl_lightning.study.intervals import Interval
from tl_lightning.study.plots import correlation_forest, named_points


def frame(count: int = 10) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 0.4, count), rng.uniform(-10, 60, count)
    names = [f"scene_digits:gaussian_noise:{k}" for k in range(count)]
    bounds = {"x_low": x - 0.01, "x_high": x + 0.01, "y_low": y - 5, "y_high": y + 5}
    return pd.DataFrame({"name": names, "group": ["a", "b"] * (count // 2), "x": x, "y": y, **bounds})


def test_every_point_is_named_and_no_name_hides_another() -> None:
    figure = named_points(frame(), "distance", "gain")
    axes = figure.axes[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert sorted(text.get_text().replace("\n", "") for text in axes.texts) == sorted(frame()["name"])
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert not overlaps


def test_bounds_may_be_missing() -> None:
    one = frame(2).assign(x_low=np.nan, x_high=np.nan, y_low=np.nan, y_high=np.nan)
    assert len(named_points(one, "x", "y").axes[0].texts) == 2
    with pytest.raises(UserError, match="no point"):
        named_points(frame(0), "x", "y")


def test_an_interval_that_holds_zero_is_hollow() -> None:
    rows = {"decided": {"a": Interval(0.6, 0.2, 0.9, 9)}, "open": {"a": Interval(0.3, -0.2, 0.7, 9)}}
    axes = correlation_forest(rows, "rank correlation", ["a", "b"]).axes[0]
    faces = [str(container[0].get_markerfacecolor()) for container in axes.containers]
    assert faces[0] != "white"
    assert faces[1] == "white"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["decided", "open"]
    assert "+0.60 [+0.20, +0.90], n = 9" in [text.get_text() for text in axes.texts]
