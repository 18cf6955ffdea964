"""What the networks of a study cost, trained or with random weights, as columns of their records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import nn

from tl_lightning.backbones import check_image_size, create_backbone, input_spec
from tl_lightning.backbones.inputs import published_weights
from tl_lightning.callbacks.peak_memory import PeakMemory
from tl_lightning.errors import UserError
from tl_lightning.study.design import Trial
from tl_lightning.study.devices import resolve_devices
from tl_lightning.study.inference_cost import inference_cost, training_step_cost
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import build_module, data_module

BATCH = 32  # images at a time for the throughput
PUBLISHED_SIZE, PUBLISHED_CLASSES, PUBLISHED_BATCH = 224, 1000, 8  # what papers count operations and parameters at

HOW_TO_READ = (
    "Latency is the median time of one image, throughput that of a batch of 32, both in eval mode, after a warm-up and "
    "with normalisation; a step is one of training the whole network, from random weights, on a batch of the study's "
    "size; its memory is what it took above the memory in use before. Networks marked *cost only* have random weights "
    "and were not trained: costs do not depend on the weights."
)

# Column of the results, heading, factor, digits.
_COLUMNS = (
    ("total_parameters", "parameters (M)", 1e-6, 2),
    ("gmacs", "GMACs an image", 1.0, 3),
    ("latency_ms", "latency (ms)", 1.0, 1),
    ("throughput", "images/s in use", 1.0, 0),
    ("training_step_ms", "training step (ms)", 1.0, 0),
    ("train_seconds", "training (s)", 1.0, 1),
    ("training_flops", "training (GFLOPs)", 1e-9, 1),
    ("step_memory_mb", "memory of a step (MiB)", 1.0, 0),
)


def check_networks(settings: Settings, trained: Sequence[str], measured: Sequence[str], repeats: int) -> None:
    """Raise ``UserError`` for a network that cannot be built, or not with the settings' weights or image size."""
    if repeats < 1:
        raise UserError(f"--latency-repeats must be at least 1, not {repeats}")
    if not trained:
        raise UserError("--backbones must name at least one network")
    default = type(settings)().backbone
    if settings.backbone not in (default, *trained):
        raise UserError(f"--backbone {settings.backbone} is not used here: name the networks with --backbones")
    for names in (trained, measured):
        if len(set(names)) != len(names):
            raise UserError(f"a network is named twice: {', '.join(names)}")
    for name in trained:
        check_image_size(name, settings.image_size, settings.weights)
        create_backbone(name, settings.weights, num_classes=2)
    for name in measured:
        check_image_size(name, settings.image_size)


def costs_in_use(module: nn.Module, settings: Settings, repeats: int) -> dict[str, float]:
    """Return ``latency_ms`` of one image, ``throughput`` in batches, ``inference_flops`` and ``gmacs`` of a network."""
    devices = resolve_devices(settings.gpus, settings.precision)
    cost = inference_cost(
        module,
        settings.image_size,
        batch_sizes=(1, BATCH),
        device=devices.accelerator,
        precision=devices.precision,
        repeats=repeats,
    )
    return {
        "latency_ms": cost["latency_ms_batch1"],
        "throughput": cost[f"throughput_batch{BATCH}"],
        "inference_flops": cost["inference_flops"],
        "gmacs": cost["inference_flops"] / 2e9,
    }


def untrained_costs(trial: Trial, settings: Settings, network: str, repeats: int) -> dict[str, Any]:
    """Return the costs of a network with random weights: in use, of a training step, and in use as published.

    The columns that begin with ``published_`` are measured at 224 px with 1,000 classes, as papers state operations
    and parameters, for one image and in batches of 8.
    """
    devices = resolve_devices(settings.gpus, settings.precision)
    images = data_module(settings, trial.seed)
    module = build_module(trial.seed, network, "none", images.num_classes, 1e-3, settings, {})
    parameters = sum(p.numel() for p in module.parameters())
    in_use = costs_in_use(module, settings, repeats)
    return {
        "backbone": network,
        "weights": "none",
        "total_parameters": parameters,
        "trainable_parameters": parameters,
        **in_use,
        **step_costs(trial, settings, network),
        **_as_published(network, devices.accelerator, devices.precision, repeats),
        "learning_rate_at_edge": False,
        "device": devices.name,
        "precision": devices.precision,
    }


def step_costs(trial: Trial, settings: Settings, network: str) -> dict[str, float]:
    """Return time and memory of a step of training a whole network, from random weights, on the first training images.

    Returns:
        ``training_step_ms``, and ``step_memory_mb`` above the memory in use before.
    """
    devices = resolve_devices(settings.gpus, settings.precision)
    images = data_module(settings, trial.seed)
    module = build_module(trial.seed, network, "none", images.num_classes, 1e-3, settings, {}).to(devices.accelerator)
    batch = {name: value.to(module.device) for name, value in next(iter(images.train_dataloader())).items()}
    batch = images.on_after_batch_transfer(batch, 0)
    memory = PeakMemory(module.device)
    memory.start()
    cost = training_step_cost(module, batch["image"], batch["label"], precision=devices.precision, repeats=3)
    return {"training_step_ms": 1000 * cost["step_seconds"], "step_memory_mb": memory.read()[1]}


def _as_published(network: str, device: str, precision: str, repeats: int) -> dict[str, float]:
    size = max(PUBLISHED_SIZE, input_spec(network).min_size)
    model = create_backbone(network, "none", PUBLISHED_CLASSES)
    batches = (1, PUBLISHED_BATCH)
    cost = inference_cost(model, size, batch_sizes=batches, device=device, precision=precision, repeats=repeats)
    return {
        "published_parameters": cost["parameters"],
        "published_gmacs": cost["inference_flops"] / 2e9,
        "published_latency_ms": cost["latency_ms_batch1"],
        "published_batch_ms": cost[f"latency_ms_batch{PUBLISHED_BATCH}"],
    }


def smallest_and_largest(results: pd.DataFrame) -> tuple[str, str]:
    """Return the networks of the fewest and the most multiply-adds, EfficientNet-Lite only where there are two."""
    sizes = results.groupby("network")["gmacs"].mean().sort_values()
    family = sizes[sizes.index.str.startswith("efficientnet_lite")]
    sizes = family if len(family) > 1 else sizes
    return str(sizes.index[0]), str(sizes.index[-1])


def mean_ratio(results: pd.DataFrame, arm: str, reference: str, column: str) -> float:
    """Return how many times the mean cost of the reference an arm costs."""
    means = results.groupby("arm")[column].mean()
    return float(means[arm] / means[reference])


def imagenet_accuracy(network: str, weights: str) -> float | None:
    """Return the ImageNet top-1 accuracy in percent that is published for the weights, None for others."""
    member = published_weights(network, weights)
    return None if member is None else float(member.meta["_metrics"]["ImageNet-1K"]["acc@1"])


def cost_table(results: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Return a row for each arm with its mean costs, and the ImageNet accuracy of the weights it began with."""
    rows = []
    for arm in arms:
        trials = results[results["arm"] == arm]
        if trials.empty:
            continue
        first = trials.iloc[0]
        top1 = imagenet_accuracy(first["backbone"], first["weights"])
        row = {"arm": arm, "ImageNet top-1 (%)": "n/a" if top1 is None else f"{top1:.1f}"}
        for column, heading, factor, digits in _COLUMNS:
            mean = trials[column].astype(float).mean() if column in trials else float("nan")
            row[heading] = "n/a" if pd.isna(mean) else f"{mean * factor:.{digits}f}"
        rows.append(row)
    return pd.DataFrame(rows)
