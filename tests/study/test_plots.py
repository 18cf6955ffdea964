import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from tl_lightning.errors import UserError
from tl_lightning.study.plots import (
    accuracy_against_factor,
    cost_bars,
    gains_against_number,
    learning_curves,
    metric_against_number,
    paired_differences,
    pareto,
    pareto_front,
)
from tl_lightning.study.statistics import mean_interval, paired_difference

ARMS = [
    *("nothing frozen", "up to features.0", "up to features.2", "up to features.3", "up to features.4"),
    *("up to features.5", "up to features.6", "head only", "progressive", "nothing frozen + layer-wise rates"),
]


def trials(seeds, close=False, arms=ARMS):
    rng = np.random.default_rng(seeds)
    rows = []
    for place, arm in enumerate(arms):
        seconds = 10 + 0.2 * place if close else 20 * 0.7 ** (place % 10)
        accuracy = 0.85 + 0.001 * place if close else 0.86 - 0.004 * (place % 10)
        for seed in range(seeds):
            rows.append(
                {
                    "arm": arm,
                    "rates": "layer-wise" if "layer-wise" in arm else "equal",
                    "seed": seed,
                    "test_accuracy": accuracy + rng.normal(0, 0.008),
                    "train_seconds": seconds * rng.normal(1, 0.05),
                    "peak_memory_mb": 900.0 - 50 * (place % 10),
                    "trainable_parameters": 3_400_000 if place < 7 else 2562,
                    "status": "ok",
                }
            )
    return pd.DataFrame(rows)


def curves(results, epochs=6):
    rows = [
        {
            **row[["arm", "seed"]],
            "epoch": epoch,
            "seconds": row["train_seconds"] * (epoch + 1) / epochs,
            "train/loss": 0.7 * 0.8**epoch,
            "val/accuracy": row["test_accuracy"] - 0.2 * 0.5**epoch,
        }
        for _, row in results.iterrows()
        for epoch in range(epochs)
    ]
    return pd.DataFrame(rows)


def comparisons(results):
    by_arm = {arm: dict(zip(rows["seed"], rows["test_accuracy"], strict=True)) for arm, rows in results.groupby("arm")}
    return {f"{arm} - {ARMS[0]}": paired_difference(by_arm[arm], by_arm[ARMS[0]]) for arm in ARMS[1:]}


FIGURES = {
    "factor": lambda results: accuracy_against_factor(results, apart=ARMS[8:]),
    "series": lambda results: accuracy_against_factor(results, series="rates", factor_text="Frozen stages"),
    "pareto": pareto,
    "curves": lambda results: learning_curves(curves(results)),
    "curves by time": lambda results: learning_curves(curves(results), ["val/accuracy"], x="seconds"),
    "differences": lambda results: paired_differences(comparisons(results)),
    "costs": cost_bars,
}


def texts(figure):
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    found = figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_visible() and artist.get_text())
    return [(text.get_text(), np.array(text.get_window_extent().extents)) for text in found]


def overlap(a, b):
    return float(np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(("seeds", "close"), [(1, False), (2, False), (5, False), (5, True)])
@pytest.mark.filterwarnings("error")
def test_everything_drawn_lies_inside_the_figure(name, seeds, close):
    figure = FIGURES[name](trials(seeds, close))
    assert isinstance(figure, Figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = figure.get_size_inches()
    assert 8 <= width <= 10
    (left, bottom), (right, top) = figure.get_tightbbox(canvas.get_renderer()).get_points()  # of what is drawn, inches
    assert min(left, bottom) >= -0.02
    assert right <= width + 0.02
    assert top <= height + 0.02
    assert plt.get_fignums() == []


@pytest.mark.parametrize(("seeds", "close"), [(1, False), (1, True), (5, False), (5, True)])
def test_labels_of_the_pareto_figure_hide_neither_each_other_nor_a_point(seeds, close):
    results = trials(seeds, close)
    figure = pareto(results)
    labels = [(text, box) for text, box in texts(figure) if text.replace("\n", " ") in ARMS]
    assert len(labels) == len(ARMS)
    for (_, a), (_, b) in itertools.combinations(labels, 2):
        assert overlap(a, b) == 0
    axes = figure.axes[0]
    means = results.groupby("arm")[["train_seconds", "test_accuracy"]].mean() * [1, 100]
    for point in axes.transData.transform(means.to_numpy()):
        marker = np.concatenate([point - 3, point + 3])
        assert all(overlap(box, marker) == 0 for _, box in labels)
    assert len(axes.findobj(Annotation)) == len(ARMS)


def test_means_and_intervals_are_those_of_the_trials():
    results = trials(5)
    results.loc[results["seed"] == 4, ["status", "test_accuracy"]] = ["failed", 0.0]
    results.loc[results["arm"] == "head only", "status"] = "failed"
    order = ["up to features.0", "nothing frozen", "head only"]
    axes = accuracy_against_factor(results, order).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["up to\nfeatures.0", "nothing frozen"]
    line, _, bars = axes.containers[0]
    for place, arm in enumerate(order[:2]):
        ended = results[(results["arm"] == arm) & (results["seed"] < 4)]
        expected = mean_interval(100 * ended["test_accuracy"])
        assert line.get_ydata()[place] == pytest.approx(expected.mean)
        assert bars[0].get_segments()[place][:, 1] == pytest.approx([expected.low, expected.high])
    dots = next(c for c in axes.collections if isinstance(c, PathCollection)).get_offsets()
    assert len(dots) == 8
    assert axes.get_ylabel() == "Test accuracy (%)"


def test_no_line_leads_to_what_is_apart():
    axes = accuracy_against_factor(trials(3), apart=ARMS[8:]).axes[0]
    joined = next(line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2)
    assert list(joined.get_xdata()) == list(range(8))


def test_series_stand_side_by_side_with_a_legend():
    results = trials(3, arms=["shallow", "deep"])
    results = pd.concat([results.assign(rates="equal"), results.assign(rates="layer-wise")])
    figure = accuracy_against_factor(results, series="rates", factor="arm")
    first, second = (container[0].get_xdata() for container in figure.axes[0].containers)
    assert (second > first).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["equal", "layer-wise"]


def test_intervals_of_two_seeds_do_not_squeeze_the_values():
    results = trials(2)
    low, high = accuracy_against_factor(results).axes[0].get_ylim()
    values = 100 * results["test_accuracy"]
    assert low < values.min() < values.max() < high
    assert np.ptp(values) > 0.3 * (high - low)
    assert "2 seeds, anecdotal" in accuracy_against_factor(results).axes[0].get_title(loc="left")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points):
    cost, value = np.array(points, dtype=float).T
    front = pareto_front(cost, value)
    beaten = [
        any(c <= cost[i] and v >= value[i] and (c, v) != (cost[i], value[i]) for c, v in points)
        for i in range(len(points))
    ]
    assert {points[i] for i in front} == {points[i] for i in range(len(points)) if not beaten[i]}
    assert (np.diff(cost[front]) > 0).all()


def test_axes_are_logarithmic_beyond_a_factor_of_ten():
    assert pareto(trials(3)).axes[0].get_xscale() == "log"
    assert pareto(trials(3, close=True)).axes[0].get_xscale() == "linear"


def test_at_most_eight_curves_with_first_and_last_arm():
    figure = learning_curves(curves(trials(3)))
    assert [axes.get_ylabel() for axes in figure.axes] == ["Training loss", "Validation accuracy (%)"]
    assert all(len(axes.lines) == 8 for axes in figure.axes)
    labels = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    assert (labels[0], labels[-1]) == (ARMS[0], ARMS[-1])
    styles = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(styles) == 8
    assert "8 of 10 arms" in [text for text, _ in texts(figure)]
    assert all(len(axes.lines) == 2 for axes in learning_curves(curves(trials(3)), arms=ARMS[:2]).axes)


def test_the_forest_shows_verdict_and_numbers():
    family = {
        "better": paired_difference([0.9, 0.91, 0.89], [0.8, 0.8, 0.8]),
        "worse": paired_difference([0.7, 0.71, 0.69], [0.8, 0.8, 0.8]),
        "unclear": paired_difference([0.7, 0.9, 0.8], [0.8, 0.8, 0.8]),
        "single": paired_difference([0.9], [0.8]),
    }
    axes = paired_differences(family).axes[0]
    shown = [text.get_text() for text in axes.texts]
    assert shown[0] == "+10.00 [+7.52, +12.48], n = 3"
    assert shown[3] == "+10.00, n = 1, anecdotal"
    colours = [text.get_color() for text in axes.texts]
    assert len(set(colours[:3])) == 3
    assert colours[2] == colours[3]
    assert axes.get_xlabel() == "Difference in test accuracy (percentage points)"
    low, high = axes.get_xlim()
    assert low < -10
    assert high > 10


def test_costs_have_their_units_and_missing_ones_are_left_out():
    results = trials(3)
    results["peak_memory_mb"] = np.nan
    panels = cost_bars(results, costs=["train_seconds", "peak_memory_mb", "trainable_parameters", "nothing"]).axes
    assert [panel.get_xlabel() for panel in panels] == ["Training time (s)", "Trainable parameters"]
    assert panels[1].get_xscale() == "log"
    assert "2562" in [text.get_text() for text in panels[1].texts]


@pytest.mark.parametrize("draw", [accuracy_against_factor, pareto, cost_bars])
def test_nothing_to_draw_is_one_line(draw):
    with pytest.raises(UserError):
        draw(trials(3).assign(status="failed"))
    with pytest.raises(UserError):
        draw(trials(3)[["arm", "seed", "status"]])
    for empty in (pd.DataFrame(), curves(trials(1)).assign(**{"train/loss": np.nan, "val/accuracy": np.nan})):
        with pytest.raises(UserError):
            learning_curves(empty)
    with pytest.raises(UserError):
        paired_differences({})


def test_ten_thousand_trials_fit_in_a_figure():
    results = trials(5, arms=[f"arm {number}" for number in range(2000)])
    for figure in (accuracy_against_factor(results), pareto(results), cost_bars(results)):
        assert max(figure.get_size_inches()) < 40
        FigureCanvasAgg(figure).draw()


def by_size(seeds=3):
    rng = np.random.default_rng(0)
    rows = [
        {"arm": f"{m} {n}", "method": m, "images": n, "seed": s, "status": "ok",
         "test_accuracy": min(0.99, base + 0.1 * np.log10(n) + rng.normal(0, 0.01))}
        for m, base in (("pretrained", 0.6), ("from random weights", 0.3)) for n in (5, 20, 80) for s in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_metric_by_number_has_a_line_for_each_series():
    figure = metric_against_number(by_size(), "images", "method", number_text="Training images a class")
    axes = figure.axes[0]
    assert axes.get_xlabel() == "Training images a class, logarithmic"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "20", "80"]
    means = [container.lines[0].get_ydata() for container in axes.containers]
    results = by_size()
    assert means[0] == pytest.approx(
        100 * results[results["method"] == "pretrained"].groupby("images")["test_accuracy"].mean().to_numpy()
    )
    assert len(means) == 2


def test_gains_by_number_show_zero():
    results = by_size()
    gains = {
        n: paired_difference(
            *(results[results["arm"] == f"{m} {n}"]["test_accuracy"] for m in ("pretrained", "from random weights"))
        )
        for n in (5, 20, 80)
    }
    figure = gains_against_number({"gain": gains}, number_text="Images", gain_text="Gain (points)")
    low, high = figure.axes[0].get_ylim()
    assert low <= 0 < 30 < high
    assert figure.axes[0].containers[0].lines[0].get_ydata() == pytest.approx(
        [100 * c.difference.mean for c in gains.values()]
    )
