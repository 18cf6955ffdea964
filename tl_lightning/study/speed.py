"""What the study of speed measures beside its fits, and what it says of the times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd
from torch import nn

from tl_lightning.backbones import Stages, check_image_size, create_backbone
from tl_lightning.errors import UserError
from tl_lightning.study.comparison import by_seed
from tl_lightning.study.criterion import Criterion
from tl_lightning.study.design import Trial
from tl_lightning.study.devices import resolve_devices
from tl_lightning.study.inference_cost import inference_cost
from tl_lightning.study.paired_gains import gain_interval
from tl_lightning.study.report import Report
from tl_lightning.study.settings import Settings
from tl_lightning.study.statistics import decide, mean_interval, paired_ratio, shared
from tl_lightning.study.step_cost import measure_step_cost
from tl_lightning.study.time_to_target import SpeedUp
from tl_lightning.study.training import activation_cache

BATCH = 32  # images at a time of the forward pass that cached features are compared with
TOLERANCE = (0.75, 1.25)  # 6b: measured over modelled

STEP_TEXT = (
    "How much faster training runs once it is warm, whatever it learns: images a second against those of plain "
    "fine-tuning, paired by seed. Measured without the first three steps, and so without compiling. Where stages thaw, "
    "or images grow, it is the mean over the fit; with cached features it is the part of the network that trains."
)

_warm: set[tuple[object, ...]] = set()


@cache
def stage_count(backbone: str) -> int:
    """Return the number of stages of a backbone, the head among them."""
    return len(Stages(create_backbone(backbone, "none", num_classes=2)))


def check_sides(backbone: str, smallest: int, image_size: int) -> None:
    """Raise ``UserError`` where progressive resizing cannot begin at a side."""
    if not 8 <= smallest <= image_size:
        raise UserError(f"--smallest-side must lie between 8 and --image-size {image_size}, not {smallest}")
    check_image_size(backbone, smallest)


def device_type(settings: Settings) -> str:
    """Return the type of the device that the trials run on."""
    return resolve_devices(settings.gpus, settings.precision).accelerator


def warm_up(trial: Trial, settings: Settings) -> None:
    """Train a throw-away model for some steps, once in a process: its first steps set up libraries and threads."""
    key = (settings.backbone, settings.image_size, settings.micro_batch_size(), settings.gpus)
    if key not in _warm:
        measure_step_cost(trial, settings, 1)
        _warm.add(key)


def forget_activations() -> None:
    """Empty the cache of activations, so that no arm gets for nothing what another one has computed."""
    activation_cache.cache_clear()


def forward_pass(module: nn.Module, images: Any, settings: Settings) -> dict[str, float]:
    """Return ``pass_seconds``: one forward pass over training and validation images, in eval mode."""
    device = device_type(settings)
    cost = inference_cost(module, settings.image_size, batch_sizes=(BATCH,), device=device, repeats=5)
    count = len(images.train_set) + len(images.val_set)
    return {"pass_seconds": count / cost[f"throughput_batch{BATCH}"]}


def conclude(report: Report, speed_ups: Mapping[str, SpeedUp], reference: str, left_out: str) -> None:
    """Say which arms reach the target sooner than the reference, which later or never, and which cannot be told."""
    ups = {arm: up for arm, up in speed_ups.items() if arm != left_out}
    sooner = {arm: up for arm, up in ups.items() if not up.censored and up.interval.low > 1}
    never = {arm: up for arm, up in ups.items() if up.censored}
    later = {arm: up for arm, up in ups.items() if not up.censored and up.interval.high < 1}
    untold = [arm for arm in ups if arm not in {**sooner, **never, **later}]

    def cost(arm: str) -> str:
        gain = gain_interval(report.results, (arm, reference), "test_accuracy").scaled(100)
        return f", at {gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] points of test accuracy" if gain.n else ""

    ranked = sorted(sooner, key=lambda arm: -sooner[arm].interval.mean)
    report.conclude(
        f"Sooner at the target than {reference} (95 % intervals, not corrected for the number of arms): "
        + ("; ".join(f"*{arm}* {sooner[arm].format()} times{cost(arm)}" for arm in ranked) or "no arm is shown to be")
        + "."
    )
    if later:
        report.conclude("Later: " + ", ".join(f"*{arm}* {up.format()} times" for arm, up in later.items()) + ".")
    if never:
        named = ", ".join(f"*{arm}* (in {up.censored} of {up.interval.n} seeds)" for arm, up in never.items())
        report.conclude(f"Not at the target by the end of the training: {named}.")
    if untold:
        report.conclude(f"Not told apart from {reference} by these seeds: {'; '.join(f'*{arm}*' for arm in untold)}.")


def target_text(targets: Mapping[Any, float], margin: float, reference: str) -> str:
    """Say what the target is, in words and in numbers."""
    values = ", ".join(f"{value:.3f} (seed {seed})" for seed, value in targets.items())
    return (
        f"The target is the validation accuracy that {reference} has at its end, less {100 * margin:g} points: "
        f"{values}. In every arm that learning rate counts whose final validation accuracy is best. "
        "The reference may reach the target before its end."
    )


def step_table(results: pd.DataFrame, arms: Sequence[str], reference: str) -> pd.DataFrame:
    """Return a row for each arm: images a second, their ratio to the reference's, seconds of the whole training."""
    rows = []
    for arm in arms:
        trials = results[results["arm"] == arm]
        if trials.empty:
            continue
        own, plain = shared(*(by_seed(results, name, "images_per_second") for name in (arm, reference)))
        ratio = "n/a" if not own else "1 (the reference)" if arm == reference else paired_ratio(own, plain).format(2)
        rows.append(
            {
                "arm": arm,
                "images/s": f"{trials['images_per_second'].mean():.0f}",
                "times as many": ratio,
                "whole training (s)": f"{trials['clock_seconds'].mean():.2f}",
                "of it caching (s)": f"{trials['extraction_seconds'].mean():.2f}",
                "peak memory (MiB)": f"{trials['peak_memory_mb'].mean():.0f}",
            }
        )
    return pd.DataFrame(rows)


def steps_note(times: pd.DataFrame, arm: str, scratch: str, censored: int, factor: int) -> str:
    """Say how many steps both took, and what limits the comparison."""
    means = times.groupby("arm")["steps"].mean()
    limit = times.loc[times["arm"] == arm, "epochs_needed"].min()
    text = (
        f"{means[scratch]:.0f} steps from scratch (of training {factor} times as long), {means[arm]:.0f} pretrained, "
        "looked at after every epoch"
    )
    text += ", so that the pretrained number is an upper bound where the first epoch is enough." if limit == 1 else "."
    return text + (f" In {censored} seeds the pretrained network did not get there." if censored else "")


def cost_model_criterion(results: pd.DataFrame) -> Criterion | None:
    """6b: what a step with frozen stages costs, measured over modelled; None where nothing was measured."""
    if "step_time_ratio" not in results or results["step_time_ratio"].isna().all():
        return None
    costs = results.dropna(subset=["step_time_ratio"])
    ratio = costs["step_time_ratio"] / costs["step_flops_ratio"]
    effect = mean_interval(ratio.groupby(costs["seed"]).mean())
    arms = ratio.groupby(costs["arm"], sort=False).mean()
    return Criterion(
        finding="6b",
        claim="a step with the share f of the FLOPs frozen costs [1 + 2 (1 - f)] / 3 of a full one",
        source="cost model",
        published="measured / model = 1",
        published_effect=1.0,
        rule="mean of measured / model over the frozen arms within 0.75 and 1.25",
        effect=effect,
        unit="measured / model",
        verdict=decide(effect, TOLERANCE, "within"),
        note="measured / model by arm: " + ", ".join(f"{arm} {value:.2f}" for arm, value in arms.items()) + ".",
    )


def cache_criterion(results: pd.DataFrame) -> Criterion | None:
    """6b: what caching the features of the whole network but its head costs, in forward passes over its images."""
    if "pass_seconds" not in results:
        return None
    cached = results[(results["frozen"] == "head") & results["pass_seconds"].notna()]
    if cached.empty:
        return None
    effect = mean_interval(cached["extraction_seconds"] / cached["pass_seconds"])
    return Criterion(
        finding="6b",
        claim="cached features cost one forward pass in all",
        source="cost model",
        published="measured / forward pass = 1",
        published_effect=1.0,
        rule="seconds of caching / seconds of one forward pass over the same images within 0.75 and 1.25",
        effect=effect,
        unit="forward passes",
        verdict=decide(effect, TOLERANCE, "within"),
        note="Below 1 it is cheaper than the model says: BatchNorm is folded into the convolutions of a frozen prefix.",
    )
