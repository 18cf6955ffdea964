"""The sections of a report on explanations: panels, stages, sanity check, pointing game, features."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from tl_lightning.analysis.attribution import GradCAMMaps
from tl_lightning.analysis.faithfulness import rank_correlation
from tl_lightning.callbacks.gradcam_panel import gradcam_panel
from tl_lightning.study.arrays import Arrays, load_arrays
from tl_lightning.study.design import Arm, trial_id
from tl_lightning.study.explanation_criteria import criteria, interval_of
from tl_lightning.study.intervals import mean_interval
from tl_lightning.study.plots import accuracy_against_factor
from tl_lightning.study.plots.pictures import Picture, as_picture, map_alone, map_over_image, picture_rows
from tl_lightning.study.plots.style import mark_cut_ends
from tl_lightning.study.report import Report

__all__ = ["criteria", "features", "panels", "pointing", "sanity", "stages"]

_PANELS = """
The same validation images, the first of each class in turn and not chosen for what they show, at several moments of
training. Every map explains the *true* class, so that all rows answer one question; before training the head is new,
and its class scores mean nothing yet. Bright is what speaks for the class; each map is scaled to its own maximum. Below
stand the predicted class, its probability, and whether it is right; *map: X* names the explained class X where another
one is predicted, and *empty map* says that at no place anything speaks for the class, so that there is nothing to show.
"""
_STAGES = """
Linear CKA of the activations of the same images at the end of each stage, from the first stage on the left to the last
before the head on the right: 1 means that two networks see the images alike there. Weight drift is the length of the
way that the weights of a stage went, as a share of where they began; the head is left out, as it began anew.
"""
_SANITY = """
The weights are replaced by noise of the same mean and spread, the head first, then one stage after the other; at the
right end nothing of what was learnt is left. A map that hardly changes on the way (correlation near 1) shows the image
and not what the network has learnt.
"""
_POINTING = """
Four images make one; the map for the class that only one of them shows should lie in its cell. A map that knows nothing
has a quarter of itself there. The grids are made of images that the network classifies rightly, of each class the half
that it is surer of, as a map cannot point at what the network does not see. The ROAD score asks the same of pixels
within one image; 0 is chance.
"""
RANDOMISED = ", weights randomised"
_COLUMNS = {
    "pointing_share": "share in the right cell",
    "pointing_share_randomised": "the same, weights randomised",
    "road": "ROAD",
}
_FEATURES = """
Each picture began as grey noise and was changed step by step until one channel answered as strongly as possible. The
channels are evenly spaced over the layer, not chosen. Early channels look for edges, colours and fine textures, later
ones for patterns; a channel that nothing has taught looks for noise-like texture.
"""


def panels(report: Report, main: str) -> None:
    """Show the panels of the main arm over time, and of all arms after training."""
    report.section("Where the network looks", _PANELS.strip())
    kept = {arm: arrays for arm in report.arms if (arrays := _arrays(report, arm, "panels")) is not None}
    if main in kept:
        explained = _explained(kept[main])
        report.figure(
            "gradcam_over_time",
            _panel(kept[main], explained),
            f"Grad-CAM of {main} before, during and after training, explaining the true class "
            f"(layer {next(iter(explained.values())).layer}).",
        )
    if len(kept) > 1:
        last = {arm: list(_explained(arrays).values())[-1] for arm, arrays in kept.items()}
        figure = _panel(next(iter(kept.values())), last)
        report.figure("gradcam_by_arm", figure, "Grad-CAM of the arms after training, explaining the true class.")
    rows = [_change(arm, arrays) for arm, arrays in kept.items()]
    if rows:
        report.table(pd.DataFrame(rows))


def _explained(arrays: Arrays) -> dict[str, GradCAMMaps]:
    columns = zip(arrays["maps"], arrays["classes"], arrays["probabilities"], arrays["layer"], strict=True)
    made = [GradCAMMaps(maps, classes, shares, str(layer)) for maps, classes, shares, layer in columns]
    return dict(zip(arrays["titles"].tolist(), made, strict=True))


def _panel(arrays: Arrays, explained: dict[str, GradCAMMaps]) -> Figure:
    names = arrays["class_names"].tolist()
    return gradcam_panel(arrays["images"], explained, labels=arrays["labels"].tolist(), class_names=names, dpi=70)


def _change(arm: str, arrays: Arrays) -> dict[str, object]:
    first, *_, last = _explained(arrays).values()
    labels, places = arrays["labels"], np.arange(len(arrays["labels"]))
    return {
        "arm": arm,
        "rank correlation of the maps before and after": float(rank_correlation(first.maps, last.maps).mean()),
        "probability of the true class before": float(first.probabilities[places, labels].mean()),
        "and after": float(last.probabilities[places, labels].mean()),
        "images": len(labels),
    }


def stages(report: Report, fine: str, scratch: str) -> None:
    """Show CKA and drift by stage."""
    report.section("What training changes, stage by stage", _STAGES.strip())
    frame = _rows(report, "stages")
    if frame.empty:
        return
    series = {
        f"{fine}, before and after": (fine, "cka_before"),
        f"{fine}, two twins": (fine, "cka_twin"),
        f"{scratch}, two twins": (scratch, "cka_twin"),
    }
    long = _long(frame, series, "linear CKA")
    if len(long):
        figure = accuracy_against_factor(
            long, metric="linear CKA", factor="stage", series="series", factor_text="Stage, from the image to the head"
        )
        _within(figure, 0.0, 1.05)
        report.figure("cka_by_stage", figure, "Linear CKA by stage: before against after training, and of twins.")
    drift = _long(
        frame.dropna(subset=["cka_before"]), {fine: (fine, "drift"), scratch: (scratch, "drift")}, "weight drift"
    )
    if len(drift):
        figure = accuracy_against_factor(
            drift,
            metric="weight drift",
            factor="stage",
            series="series",
            factor_text="Stage, from the image to the head",
        )
        report.figure(
            "drift_by_stage", figure, "Distance that the weights of each stage moved, relative to their length."
        )
    _conclude_stages(report, fine, scratch)


def _within(figure: Figure, low: float, high: float) -> None:
    """Cut the vertical axis to where values can lie; intervals of few seeds reach beyond."""
    axes = figure.axes[0]
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low), min(top, high))
    mark_cut_ends(axes)


def _conclude_stages(report: Report, fine: str, scratch: str) -> None:
    early, late = (interval_of(report.results, fine, column) for column in ("cka_early", "cka_late"))
    if early.n:
        report.conclude(
            f"After fine-tuning the first third of the stages has a linear CKA of {early.format()} with what it was, "
            f"the last third {late.format()}."
        )
    first, second = (interval_of(report.results, arm, "cka_twin") for arm in (fine, scratch))
    if first.n and second.n:
        report.conclude(
            f"Two networks that differ by chance alone have a linear CKA (mean over the stages) of {first.format()} "
            f"when fine-tuned and {second.format()} when trained from scratch."
        )


def sanity(report: Report, main: str) -> None:
    """Show how maps change while the weights are randomised."""
    report.section("Do the maps depend on the weights?", _SANITY.strip())
    frame = _rows(report, "cascade")
    if frame.empty:
        return
    methods = {name: (main, name) for name in ("Grad-CAM", "guided backpropagation")}
    long = _long(frame, methods, "rank correlation")
    figure = accuracy_against_factor(
        long,
        metric="rank correlation",
        factor="stage",
        series="series",
        factor_text="Random from the head down to this stage",
    )
    figure.axes[0].axhline(0, color="#555555", linewidth=1, zorder=1)
    _within(figure, -1.0, 1.05)
    report.figure("sanity_check", figure, "Rank correlation of maps with those of the trained network.")
    arrays = _arrays(report, main, "sanity")
    if arrays is not None:
        names = frame["stage"].drop_duplicates().tolist()
        report.figure("sanity_maps", _sanity_maps(arrays, names), "The maps behind it, of the first images.")
    _conclude_cascade(report, frame)
    cam, guided = (interval_of(report.results, main, f"{name}_correlation") for name in ("gradcam", "guided"))
    beside = f"; those of guided backpropagation at {guided.format()}" if guided.n else ""
    report.conclude(
        f"With all weights random the Grad-CAM maps correlate with the trained network's at {cam.format()}{beside}."
    )


def _conclude_cascade(report: Report, frame: pd.DataFrame) -> None:
    """Say how far the two methods are apart when the upper stages alone are random."""
    order = frame["stage"].drop_duplicates().tolist()
    if len(order) < 3 or frame["guided backpropagation"].isna().all():
        return
    upper = frame[frame["stage"] == order[1]]
    means = {name: mean_interval(upper[name].astype(float)) for name in ("Grad-CAM", "guided backpropagation")}
    report.conclude(
        f"With the weights random from the head down to {order[1]} alone, the correlation is "
        f"{means['Grad-CAM'].format()} for Grad-CAM and {means['guided backpropagation'].format()} for guided "
        "backpropagation."
    )


def _sanity_maps(arrays: Arrays, stages: list[str]) -> Figure:
    images, cams, guided = arrays["images"], arrays["grad_cam"], arrays.get("guided")
    rows: dict[str, list[Picture]] = {}
    for number, name in enumerate(["trained", *(f"random down to {stage}" for stage in stages)]):
        rows[name] = [map_over_image(image, heat) for image, heat in zip(images, cams[number], strict=True)]
        rows[name] += [map_alone(heat) for heat in guided[number]] if guided is not None else []
    methods = ["Grad-CAM"] if guided is None else ["Grad-CAM", "guided backprop."]
    plain = [as_picture(image) for image in images] * len(methods)
    columns = [method for method in methods for _ in images]
    return picture_rows({"image": plain, **rows}, columns=columns, heading=1)  # the images are no maps of a method


def pointing(report: Report, main: str) -> None:
    """Show where the maps of grids lie, and the ROAD scores."""
    report.section("Do the maps point at the evidence?", _POINTING.strip())
    results = report.results
    names = [name for name in ("pointing_share", "pointing_share_randomised", "road") if name in results]
    frame = _shares(results) if "pointing_share" in results else pd.DataFrame()
    if len(frame):
        names_of = [f"{arm}{ending}" for arm in report.arms for ending in ("", RANDOMISED)]
        figure = accuracy_against_factor(
            frame, names_of, metric="share of the map in the right cell", factor="network", apart=names_of
        )
        figure.axes[0].axhline(0.25, color="#555555", linewidth=1, linestyle="--", zorder=1)
        figure.axes[0].set_ylim(0, 1)
        mark_cut_ends(figure.axes[0])
        report.figure("pointing_game", figure, "Grid pointing game; the dashed line is chance, 0.25.")
    arrays = _arrays(report, main, "pointing")
    if arrays is not None:
        report.figure("pointing_grids", _grids(report, main, arrays), "Grids, and the maps for the class named above.")
    if names:
        means = results.groupby("arm", sort=False)[names].mean().reset_index().dropna(how="all", subset=names)
        report.table(means.rename(columns=_COLUMNS))
    share, control = (interval_of(results, main, name) for name in names[:2]) if len(names) >= 2 else (None, None)
    if share is not None and control is not None and share.n:
        report.conclude(
            f"In the grid pointing game {share.format()} of the Grad-CAM of the {main} network lies in the right cell, "
            f"{control.format()} with its weights randomised (chance 0.25)."
        )


def _shares(results: pd.DataFrame) -> pd.DataFrame:
    """Return the shares of each arm and its randomised network in one column."""
    parts = []
    for column, ending in (("pointing_share", ""), ("pointing_share_randomised", RANDOMISED)):
        part = results[["arm", "seed", column]].dropna()
        named = {
            "seed": part["seed"],
            "network": part["arm"] + ending,
            "share of the map in the right cell": part[column],
        }
        parts.append(pd.DataFrame(named))
    return pd.concat(parts)


def _grids(report: Report, main: str, arrays: Arrays) -> Figure:
    panel = _arrays(report, main, "panels")
    names = panel["class_names"].tolist() if panel is not None else None
    columns = [names[label] if names else f"class {label}" for label in arrays["classes"].tolist()]
    images = arrays["images"]
    rows = {"grid": [as_picture(image) for image in images]}
    for name, key in ((main, "maps"), (f"{main}{RANDOMISED}", "control")):
        rows[name] = [map_over_image(image, heat) for image, heat in zip(images, arrays[key], strict=True)]
    return picture_rows(rows, columns=columns, cell=1.9)


def features(report: Report, fine: str, scratch: str) -> None:
    """Show what the channels look for, before and after training."""
    report.section("What the channels look for", _FEATURES.strip())
    tables = []
    for arm, when, name in _networks(fine, scratch):
        rows = [row for record in _records(report, arm) for row in record.get("features", []) if row["when"] == when]
        tables += [{"network": name, **row} for row in rows]
    if not tables:
        return
    frame = pd.DataFrame(tables)
    for number, layer in enumerate(frame["layer"].drop_duplicates(), start=1):
        figure = _feature_pictures(report, fine, scratch, layer)
        if figure is not None:
            report.figure(f"features_{number}", figure, f"Images that excite single channels of {layer} most.")
    frame["above_all_real"] = frame["above_all_real"].map("{:.0%}".format)
    report.table(frame.drop(columns="when").rename(columns=lambda name: name.replace("_", " ")).round(3))
    report.text(
        "Mean activation of the channels for the image made for them (*optimised*), for the strongest of the real "
        "validation images and for the noise at the start; *above all real* is the share of the channels that answer "
        "more strongly to their own image than to any real one."
    )


def _feature_pictures(report: Report, fine: str, scratch: str, layer: str) -> Figure | None:
    rows: dict[str, list[Picture]] = {}
    captions: dict[str, list[str]] = {}
    for arm, when, name in _networks(fine, scratch):
        arrays = _arrays(report, arm, "features") or {}
        images: npt.NDArray[np.float32] | None = arrays.get(f"{when}|{layer}|images")
        if images is not None:
            rows[name] = [as_picture(image) for image in images]
            captions[name] = [f"channel {channel}" for channel in arrays[f"{when}|{layer}|channels"].tolist()]
    return picture_rows(rows, captions=captions, cell=1.4) if rows else None


def _networks(fine: str, scratch: str) -> list[tuple[str, str, str]]:
    """Return arm, moment and name of the networks whose features are shown."""
    after = "after training"
    return [(fine, "before training", "before fine-tuning"), (fine, after, fine), (scratch, after, scratch)]


def _records(report: Report, arm: str) -> list[dict[str, Any]]:
    return [record for record in report.records if record["status"] == "ok" and record["arm"] == arm]


def _arrays(report: Report, arm: str, name: str) -> Arrays | None:
    """Return the arrays that the arm's trial at the first seed kept."""
    seed = report.settings.seed_list()[0]
    if not any(record["seed"] == seed for record in _records(report, arm)):
        return None
    return load_arrays(report.out / "trials" / trial_id(Arm(arm), seed), name)


def _rows(report: Report, key: str) -> pd.DataFrame:
    """Return the rows that the records hold under a key, with arm and seed."""
    return pd.DataFrame(
        [
            {"arm": record["arm"], "seed": record["seed"], **row}
            for record in report.records
            if record["status"] == "ok"
            for row in record.get(key, [])
        ]
    )


def _long(frame: pd.DataFrame, series: dict[str, tuple[str, str]], value: str) -> pd.DataFrame:
    """Return one row a stage, seed and series: a series is a column of an arm."""
    parts = []
    for name, (arm, column) in series.items():
        part = frame.loc[frame["arm"] == arm, ["stage", "seed", column]].rename(columns={column: value})
        parts.append(part.assign(series=name).astype({value: float}).dropna())
    return pd.concat(parts, ignore_index=True)
