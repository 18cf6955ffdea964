"""How alike two models of one architecture are, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tl_lightning.activations.extraction import record
from tl_lightning.analysis.cka import minibatch_cka
from tl_lightning.backbones.stages import Stages

_SIDE = 8  # maps are averaged down to this side: whole early maps of 160 px would take gigabytes


def stage_activations(
    model: nn.Module, images: Tensor, stages: Stages, *, normalise: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the activations at the end of every stage but the head, by its name, shallow to deep.

    Args:
        model: The backbone, which is left as it is.
        images: Float [N, 3, H, W].
        stages: Its stages.
        normalise: Applied to the images first.

    Returns:
        [N, C, h, w] with h and w at most 8 by averaging, or [N, ...] where a stage gives no maps.
    """
    boundaries = {stages.names[i]: stages.boundary_before(i + 1).name for i in range(len(stages) - 1)}
    found = record(model, list(boundaries.values()), images, normalise=normalise, reduce=small_maps)
    return {stage: found[boundary] for stage, boundary in boundaries.items()}


def small_maps(activation: Tensor) -> Tensor:
    """Return maps averaged down to at most 8 x 8; other activations as they are."""
    if activation.ndim != 4 or max(activation.shape[2:]) <= _SIDE:
        return torch.clone(activation)
    return F.adaptive_avg_pool2d(activation, _SIDE)


def stage_cka(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the linear CKA (unbiased, see ``minibatch_cka``) of each stage of one model with that of the other.

    Args:
        first: Stage to activations [N, ...].
        second: The same stages and images of the other model.
    """
    return {stage: minibatch_cka(first[stage], second[stage]) for stage in first}
