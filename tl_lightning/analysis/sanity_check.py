"""The sanity check of saliency maps: do they change when what the model has learnt is destroyed?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from tl_lightning.analysis.attribution import GradCAMMaps, as_inputs, grad_cam, guided_backprop
from tl_lightning.analysis.checks import Array, as_numpy
from tl_lightning.analysis.faithfulness import rank_correlation
from tl_lightning.analysis.randomisation import estimate_batch_norm, weight_randomisation_cascade
from tl_lightning.backbones.stages import Stages
from tl_lightning.errors import UserError

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SanityCheck:
    """Maps of a model whose weights are randomised from the head down, compared with those of the trained one.

    Attributes:
        stages: Names of the S stages down to which the weights are random, from the head down; the last is the first
            stage of the network, where all weights are.
        grad_cam: [S, N], rank correlation of the Grad-CAM maps with those of the trained model.
        guided: The same for magnitudes of guided backpropagation; None for a network without ReLUs.
        flat: [S, N], whether a Grad-CAM map is the same everywhere, mostly empty: it ranks no pixels and counts as 0.
        grad_cam_maps: [1 + S, K, H, W], maps of the first K images: of the trained model, then at each stage.
        guided_maps: The same for guided backpropagation, or None.
        layer: Path of Grad-CAM's target layer within the backbone.
    """

    stages: tuple[str, ...]
    grad_cam: npt.NDArray[np.float64]
    guided: npt.NDArray[np.float64] | None
    flat: npt.NDArray[np.bool_]
    grad_cam_maps: Maps
    guided_maps: Maps | None
    layer: str


def randomisation_check(
    model: nn.Module,
    images: Array,
    stages: Stages,
    *,
    layer: str | None = None,
    attribute: str = "",
    steps: int = 5,
    kept: int = 3,
    seed: int = 0,
) -> SanityCheck:
    """Run the sanity check of Adebayo et al. 2018 with cascading randomisation.

    All maps explain the class that the trained model predicts. The model is not changed. BatchNorm of the random
    networks has the statistics of their own activations on the images.

    Args:
        model: Maps images to class scores [N, C].
        images: Images [N, 3, H, W] as the model's forward takes them.
        stages: The stages of its backbone; weights are randomised stage by stage, the head first.
        layer: Target layer of Grad-CAM within the backbone; see ``find_target_layer``.
        attribute: Path of the backbone within the model; the model itself by default.
        steps: Number of stages after which the maps are compared: the head, the first stage, and evenly between.
        kept: Images whose maps are returned.
        seed: Fixes the noise.
    """
    trained = grad_cam(model, images, layer=layer, attribute=attribute)
    guided = _guided(model, images, trained)
    order = _from_the_top(model, stages, attribute)
    last_of_stage = {stage: name for name, stage in order}
    looked_at = {last_of_stage[stage]: stage for stage in _evenly(list(last_of_stage), steps)}
    names: list[str] = []
    cams, guideds = [trained.maps], [] if guided is None else [guided]
    for name, copied in weight_randomisation_cascade(model, [name for name, _ in order], seed=seed):
        if name in looked_at:
            names.append(stages.names[looked_at[name]])
            estimate_batch_norm(copied, as_inputs(copied, images))
            cams.append(grad_cam(copied, images, trained.classes, layer=trained.layer, attribute=attribute).maps)
            if guided is not None:
                guideds.append(_magnitude(guided_backprop(copied, images, trained.classes)))
    return SanityCheck(
        tuple(names),
        np.stack([rank_correlation(cams[0], maps) for maps in cams[1:]]),
        np.stack([rank_correlation(guideds[0], maps) for maps in guideds[1:]]) if guideds else None,
        np.stack([np.ptp(maps.reshape(len(maps), -1), axis=1) == 0 for maps in cams[1:]]),
        np.stack([maps[:kept] for maps in cams]),
        np.stack([maps[:kept] for maps in guideds]) if guideds else None,
        trained.layer,
    )


def _guided(model: nn.Module, images: Array, trained: GradCAMMaps) -> Maps | None:
    try:
        guided_backprop(model, as_numpy(images)[:1], trained.classes[:1])
    except UserError:  # no ReLU in the network
        return None
    return _magnitude(guided_backprop(model, images, trained.classes))


def _magnitude(gradients: Maps) -> Maps:
    return np.abs(gradients).sum(1)


def _from_the_top(model: nn.Module, stages: Stages, attribute: str) -> list[tuple[str, int]]:
    """Return the modules that own parameters with their stage, the head's first."""
    prefix = f"{attribute}." if attribute else ""
    stage_of = {f"{prefix}{name}": stage for name, stage in stages.parameter_stage().items()}
    owners: dict[str, int] = {}
    for name in stage_of:
        owners.setdefault(name.rpartition(".")[0], stage_of[name])
    if "" in owners:
        raise UserError("parameters that the model itself owns, outside of any layer, cannot be randomised by layer")
    last_first = list(owners.items())[::-1]
    return sorted(last_first, key=lambda owner: -owner[1])


def _evenly(stages: list[int], most: int) -> list[int]:
    places = np.linspace(0, len(stages) - 1, min(max(most, 1), len(stages))).round().astype(int)
    return [stages[place] for place in (places if len(places) > 1 else [len(stages) - 1])]
