"""Where a network stops being general: its first stages kept, the rest trained anew (Yosinski et al. 2014)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_lightning.study.design import Trial
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import build_module, data_module


def kept_stages(
    trial: Trial, settings: Settings, source: str | Path, depth: int, data_options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return what to ``start`` with: the first stages from a source network, all behind them from random weights.

    Args:
        trial: Its seed fixes the random weights.
        settings: Of the target; its backbone is that of the source.
        source: Checkpoint that ``pretrained_on`` kept.
        depth: Number of stages that come from the source.
        data_options: Further arguments of the target's data module.
    """
    classes = data_module(settings, trial.seed, **data_options).num_classes
    rate = settings.rate_list()[0]
    fresh, old = (
        build_module(trial.seed, settings.backbone, weights, classes, rate, settings, {})
        for weights in ("none", str(source))
    )
    stage = {**fresh.stages.parameter_stage(), **fresh.stages.buffer_stage()}
    kept = {f"backbone.{name}" for name, place in stage.items() if place < depth}
    before = old.state_dict()
    return {name: before[name] if name in kept else value for name, value in fresh.state_dict().items()}


def whole_network(trial: Trial, settings: Settings, source: str | Path, classes: int) -> dict[str, Tensor]:
    """Return what to ``start`` with: a source network with its head, for a target of the same classes."""
    module = build_module(trial.seed, settings.backbone, "none", classes, settings.rate_list()[0], settings, {})
    module.backbone.load_state_dict(torch.load(source, map_location="cpu", weights_only=True)["state_dict"])
    return module.state_dict()
