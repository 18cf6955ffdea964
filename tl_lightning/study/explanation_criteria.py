"""The criteria of published findings on explanations, as they were written before any run."""

from __future__ import annotations

import math

import pandas as pd

from tl_lightning.study.comparison import by_seed
from tl_lightning.study.criterion import Criterion
from tl_lightning.study.intervals import Interval, mean_interval
from tl_lightning.study.report import Report
from tl_lightning.study.statistics import decide, paired_difference, shared

NEAR_CHANCE = (0.15, 0.35)
MOST_FLAT = 0.5  # of the maps of a seed: with more, the check is passed by there being no map


def criteria(report: Report, fine: str, scratch: str) -> None:
    """Evaluate 9a, 9b and 9c for the fine-tuned arm; what was not measured is not decided."""
    bench = "" if report.settings.data == "cifar10" else f"Meant for CIFAR-10; this run is on {report.settings.data}."
    for criterion in (
        _sanity(report.results, fine),
        _early_and_late(report.results, fine, bench),
        _twins(report.results, fine, scratch, bench),
        _pointing(report.results, fine),
        _pointing_control(report.results, fine),
    ):
        report.criterion(criterion)


def interval_of(results: pd.DataFrame, arm: str, column: str) -> Interval:
    """Return the mean of a column over the seeds of an arm; not a number, n = 0, where it was never measured."""
    return _interval(_by_seed(results, arm, column))


def _by_seed(results: pd.DataFrame, arm: str, column: str) -> dict:
    return by_seed(results.dropna(subset=[column]), arm, column) if column in results else {}


def _interval(values: dict) -> Interval:
    return mean_interval(list(values.values())) if values else Interval(math.nan, math.nan, math.nan, 0)


def _difference(first: dict, second: dict) -> Interval:
    a, b = shared(first, second)
    return paired_difference(a, b).difference if a else _interval({})


def _most_flat(results: pd.DataFrame, arm: str) -> float:
    """Return the largest share, over the seeds, of Grad-CAM maps that random weights leave flat."""
    return max(_by_seed(results, arm, "gradcam_flat").values(), default=0.0)


def _sanity(results: pd.DataFrame, fine: str) -> Criterion:
    effect, guided = (interval_of(results, fine, f"{name}_correlation") for name in ("gradcam", "guided"))
    images = _by_seed(results, fine, "explained_images")
    flat = _most_flat(results, fine)
    counted = f" In one seed {100 * flat:.0f} % of the maps are flat and count as 0." if flat else ""
    return Criterion(
        finding="9a",
        claim="Grad-CAM passes the weight-randomisation sanity check",
        source="Adebayo et al. 2018",
        published="Grad-CAM changes with the weights; guided backpropagation hardly does",
        rule="rank correlation of the Grad-CAM maps of 100 images below 0.5 with all weights random",
        effect=effect,
        unit="rank correlation",
        verdict="not decided" if flat > MOST_FLAT else decide(effect, 0.5, "below"),
        note=f"{min(images.values(), default=0):.0f} images a seed. Guided backpropagation beside it: "
        f"{guided.format() if guided.n else 'not measured'}.{counted}",
    )


def _early_and_late(results: pd.DataFrame, fine: str, bench: str) -> Criterion:
    effect = _difference(_by_seed(results, fine, "cka_early"), _by_seed(results, fine, "cka_late"))
    return Criterion(
        finding="9b",
        claim="early layers stay closer to the pretrained ones than late layers",
        source="Neyshabur et al. 2020",
        published="the similarity to the pretrained network falls with depth",
        rule="linear CKA before against after fine-tuning, first third of the stages - last third, above 0",
        effect=effect,
        unit="CKA",
        verdict=decide(effect, 0.0, "above"),
        note=bench,
    )


def _twins(results: pd.DataFrame, fine: str, scratch: str, bench: str) -> Criterion:
    effect = _difference(_by_seed(results, fine, "cka_twin"), _by_seed(results, scratch, "cka_twin"))
    return Criterion(
        finding="9b",
        claim="two fine-tuned networks are more alike than two trained from scratch",
        source="Neyshabur et al. 2020",
        published="fine-tuned pairs are alike in all layers, pairs from scratch are not",
        rule="linear CKA of twins, mean over the stages, fine-tuned - from scratch, above 0",
        effect=effect,
        unit="CKA",
        verdict=decide(effect, 0.0, "above"),
        note=f"Neyshabur trains from scratch to convergence; networks that have learnt little can stay alike by what "
        f"their architecture does with any weights. {bench}".strip(),
    )


def _pointing(results: pd.DataFrame, fine: str) -> Criterion:
    effect = interval_of(results, fine, "pointing_share")
    return Criterion(
        finding="9c",
        claim="Grad-CAM points at the right image of a 2 x 2 grid",
        source="Boehle et al. 2021",
        published="well above chance, 0.25",
        rule="share of the map in the right cell above 0.4",
        effect=effect,
        unit="share",
        verdict=decide(effect, 0.4, "above"),
    )


def _pointing_control(results: pd.DataFrame, fine: str) -> Criterion:
    effect = interval_of(results, fine, "pointing_share_randomised")
    flat = _most_flat(results, fine)
    return Criterion(
        finding="9c",
        claim="with its weights randomised it is near chance",
        source="Boehle et al. 2021",
        published="0.25 is chance",
        rule=f"share of the map in the right cell within {NEAR_CHANCE[0]} and {NEAR_CHANCE[1]} with random weights",
        effect=effect,
        unit="share",
        verdict="not decided" if flat > MOST_FLAT else decide(effect, NEAR_CHANCE, "within"),
        note="A flat map counts as 0.25, and with random weights most are flat (see 9a)." if flat > MOST_FLAT else "",
    )
