import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from tl_lightning.errors import UserError
from tl_lightning.study.intervals import Interval
from tl_lightning.study.plots import (
    accuracy_against_factor,
    cost_bars,
    gains_against_number,
    learning_curves,
    metric_against_number,
    paired_differences,
    pareto,
    pareto_front,
    target_times,
)
from tl_lightning.study.plots.style import axis_text, mark_cut_ends, never_negative, scaled, wrap_at_commas
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


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("test_map_50", "Test mAP 50"),
        ("share of the map in the right cell", "Share of the map in the right cell"),
        ("test_ece", "Test calibration error (points)"),
        ("val_knn_accuracy", "Validation accuracy of 5 nearest neighbours (%)"),
        ("train/clean_accuracy", "Accuracy on clean training images (%)"),
        ("val/loss", "Validation loss"),
    ],
)
def test_names_become_words_and_sentences_stay_as_they_are(metric, text):
    assert axis_text(metric) == text
    assert scaled(0.1, metric) == pytest.approx(10 if text.endswith(")") else 0.1)


def test_what_has_no_negative_values_is_told_by_its_words():
    assert all(map(never_negative, ("val/loss", "test_ece", "linear CKA", "test_map")))
    assert not any(map(never_negative, ("rank correlation", "training - validation gap (points)", "gap")))


def heads(axes):
    """Return the places of the arrow heads."""
    return [tuple(float(x[0]) for x in line.get_data()) for line in axes.lines if line.get_gid() == "cut end"]


def wide(seeds):
    """Return two arms whose intervals are far wider than the spread of their means."""
    rows = [("a", 0.50), ("a", 0.53), ("a", 0.56), ("b", 0.53), ("b", 0.53), ("b", 0.53)]
    kept = [(arm, place % 3, value) for place, (arm, value) in enumerate(rows) if place % 3 < seeds]
    frame = pd.DataFrame(kept, columns=["arm", "seed", "test_accuracy"])
    return frame.assign(status="ok", train_seconds=frame["test_accuracy"], images=10)


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_of_three_seeds_are_shown_whole_and_cut_ends_of_two_have_arrow_heads(seeds):
    results = wide(seeds)
    values = [rows["test_accuracy"].to_numpy() for _, rows in results.groupby("arm")]
    comparison = paired_difference(*values)
    figures = [
        (paired_differences({"a - b": comparison}), 0),
        (gains_against_number({"gain": {10: comparison}}, number_text="n", gain_text="gain"), 1),
        (metric_against_number(results, "images"), 1),
        (accuracy_against_factor(results), 1),
    ]
    if seeds == 3:
        figures.append((cost_bars(results, costs=["train_seconds"]), 0))
    for figure, side in figures:
        axes = figure.axes[0]
        limits = (axes.get_xlim(), axes.get_ylim())[side]
        assert ("arrow" in axes.get_title(loc="left")) == (len(heads(axes)) > 0)
        if seeds == 3:
            assert heads(axes) == []
            drawn = [found for found in axes.containers if isinstance(found, ErrorbarContainer)]
            ends = [s[:, side] for found in drawn for bar in found.lines[2] for s in bar.get_segments()]
            assert np.ptp(ends, axis=1).max() > 0.05
            assert all(limits[0] <= min(end) <= max(end) <= limits[1] for end in ends)
        else:
            assert all(place[side] in limits for place in heads(axes))
            assert len(heads(axes)) >= 1


def test_an_interval_beyond_what_can_be_is_cut_with_an_arrow_head():
    results = wide(3)
    results["test_ece"] = [0.0, 0.2, 0.0, 0.1, 0.1, 0.1]
    axes = accuracy_against_factor(results, metric="test_ece").axes[0]
    assert axes.get_ylim()[0] == 0
    assert heads(axes) == [(0, 0)]


def test_numbers_of_costs_stand_outside_the_panels():
    figure = cost_bars(trials(3))
    FigureCanvasAgg(figure).draw()
    for panel in figure.axes:
        frame = panel.get_window_extent()
        assert panel.texts
        assert all(text.get_window_extent().x0 > frame.x1 for text in panel.texts)


def test_the_front_is_ringed_even_where_it_is_one_point():
    results = wide(3).assign(train_seconds=1.0)
    figure = pareto(pd.concat([results[results["arm"] == "a"], results[results["arm"] == "b"].assign(train_seconds=2)]))
    axes = figure.axes[0]
    rings = [c.get_offsets() for c in axes.collections if isinstance(c, PathCollection) and not len(c.get_facecolor())]
    assert [ring.tolist() for ring in rings] == [[[1.0, pytest.approx(53)]]]
    assert "ringed" in axes.get_title(loc="left")


@pytest.mark.parametrize(
    "draw", [accuracy_against_factor, pareto, lambda r, **k: metric_against_number(r, "images", **k)]
)
def test_chance_is_a_dotted_line_with_its_name(draw):
    without, axes = draw(wide(3)).axes[0], draw(wide(3), chance=0.3).axes[0]
    level = [line for line in axes.lines if line.get_linestyle() == ":" and set(line.get_ydata()) == {30}]
    assert len(level) == 1
    assert axes.get_ylim()[0] < 30 < without.get_ylim()[0]
    assert "one answer\nfor all" in [text.get_text() for text in axes.texts]
    assert "one answer\nfor all" not in [text.get_text() for text in without.texts]


@pytest.mark.parametrize("arms", [3, 4])
def test_curves_begin_at_epoch_one_and_have_bands_where_these_can_be_told_apart(arms):
    axes = learning_curves(curves(trials(3)), arms=ARMS[:arms]).axes[1]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert sum(isinstance(found, PolyCollection) for found in axes.collections) == (arms if arms == 3 else 0)
    assert ("interval" in axes.get_title(loc="left")) == (arms == 3)
    assert learning_curves(curves(trials(3)), arms=ARMS[:arms]).axes[0].get_ylim()[0] >= 0


def test_an_arm_of_one_epoch_has_a_bar_and_a_larger_marker():
    frame = curves(trials(3, arms=ARMS[:2]))
    axes = learning_curves(frame[(frame["arm"] == ARMS[0]) | (frame["epoch"] == 4)]).axes[1]
    lines = [line for line in axes.lines if line.get_gid() is None]
    assert lines[1].get_markersize() > lines[0].get_markersize()
    assert [len(container.lines[2]) for container in axes.containers] == [1]


def test_texts_above_the_times_do_not_meet_and_colours_say_what_the_intervals_say():
    arms = ["plain", "quick", "slow", "open"]
    times = pd.DataFrame([{"arm": a, "seed": s, "seconds": 10.0 + s, "reached": True} for a in arms for s in range(3)])
    ratios = {"quick": Interval(2, 1.5, 3, 3), "slow": Interval(0.5, 0.4, 0.6, 3), "open": Interval(1, 0.5, 2, 3)}
    figure = target_times(times, texts={name: f"{r.mean} [{r.low}, {r.high}] (n = 3)" for name, r in ratios.items()},
                          ratios=ratios)  # fmt: skip
    boxes = [box for _, box in texts(figure)]
    assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    colours = [text.get_color() for text in figure.axes[0].texts[:3]]
    assert len(set(colours)) == 3
    assert "blue quicker" in figure.get_suptitle()
    assert "blue" not in target_times(times).get_suptitle()


def test_lines_end_at_commas_where_these_are_short_enough():
    assert wrap_at_commas("pretrained 1x, 96 images", 16) == "pretrained 1x,\n96 images"
    assert wrap_at_commas("scratch 1x, 96 images", 16) == "scratch 1x,\n96 images"
    assert wrap_at_commas("a, b", 16) == "a, b"
    assert wrap_at_commas("random down to features.7", 16) == "random down to\nfeatures.7"


def test_arrow_heads_follow_the_limits():
    axes = accuracy_against_factor(wide(3)).axes[0]
    whole = axes.get_ylim()
    axes.set_ylim(50, 54)
    mark_cut_ends(axes)
    mark_cut_ends(axes)
    assert heads(axes) == [(0, 50), (0, 54)]
    assert axes.get_title(loc="left") == "mean and 95 % interval, 3 seeds; arrow: interval goes on"
    axes.set_ylim(*whole)
    mark_cut_ends(axes)
    assert heads(axes) == []
    assert axes.get_title(loc="left") == "mean and 95 % interval, 3 seeds"
