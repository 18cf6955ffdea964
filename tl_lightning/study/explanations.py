"""A look into one trained model: maps, representations, features; what is seen joins the trial's record."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tl_lightning.analysis.attribution import GradCAMMaps, as_inputs, grad_cam
from tl_lightning.analysis.faithfulness import PointingGrids, pointing_grids, pointing_share, road
from tl_lightning.analysis.feature_visualisation import channel_activations, visualise_channels
from tl_lightning.analysis.randomisation import estimate_batch_norm, weight_randomisation_cascade
from tl_lightning.analysis.sanity_check import randomisation_check
from tl_lightning.analysis.similarity import weight_drift
from tl_lightning.analysis.stage_similarity import stage_activations, stage_cka
from tl_lightning.backbones import check_image_size
from tl_lightning.callbacks.gradcam import GradCAMLogger
from tl_lightning.data import TransferDataModule
from tl_lightning.errors import UserError
from tl_lightning.study.arrays import save_arrays
from tl_lightning.study.design import Trial
from tl_lightning.study.explained_images import LabelledImages, panel_images, sample_images, surer_half
from tl_lightning.study.fitting import Fits
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import build_module, data_module
from tl_lightning.tasks import TaskModule

BACKBONE = "backbone"
Values = dict[str, Any]


def check_explanations(settings: Settings, layer: str | None, grids: bool) -> None:
    """Raise ``UserError`` for a target layer that Grad-CAM cannot use, or images that the backbone cannot take.

    Args:
        settings: Of the study.
        layer: Target layer within the backbone, None for the default one.
        grids: Whether grids of twice the image size must pass through the backbone too.
    """
    images = data_module(settings, settings.seed_list()[0])
    module = build_module(0, settings.backbone, "none", images.num_classes, 1e-3, settings, {})
    grad_cam(module, torch.rand(1, 3, settings.image_size, settings.image_size), layer=layer, attribute=BACKBONE)
    if grids:
        try:
            check_image_size(settings.backbone, 2 * settings.image_size)
        except UserError as error:
            raise UserError(
                f"the grids of the pointing game are twice as large: {error}; --grids 0 leaves it out"
            ) from None


def gradcam_logger(shown: LabelledImages, layer: str | None, every_n_epochs: int) -> GradCAMLogger:
    """Return the callback that draws the panels of the images while a module trains."""
    return GradCAMLogger(
        shown.images,
        shown.labels.tolist(),
        class_names=shown.class_names,
        target_layer=layer,
        every_n_epochs=max(1, every_n_epochs),
    )


@dataclass
class Look:
    """What is looked at in the selected module of one trial, on validation images alone.

    Attributes:
        trial: The trial.
        settings: Those of the study of interpretability.
        images: The data.
        fits: Its fits.
        twin: A module of the same arm with other random numbers, or None.
        panel: Images of the panels; None for trials that keep no pictures.
    """

    trial: Trial
    settings: Any
    images: TransferDataModule
    fits: Fits
    twin: TaskModule | None
    panel: LabelledImages | None

    @cached_property
    def before(self) -> TaskModule:
        """The module as it was before training."""
        weights, classes = str(self.trial.arm.factors["start"]), self.images.num_classes
        return build_module(self.trial.seed, self.settings.backbone, weights, classes, 1e-3, self.settings, {})

    @cached_property
    def sample(self) -> LabelledImages:
        """The images that are explained."""
        return sample_images(self.images, self.settings.explained_images)

    def place(self, module: TaskModule) -> None:
        """Move all modules to where the study computes."""
        for model in (module, self.before, self.twin):
            if model is not None:
                model.to(self.fits.devices.accelerator)

    def representations(self, module: TaskModule) -> Values:
        """Return linear CKA and weight drift by stage: before against after training, and against the twin.

        Returns:
            ``stages``: for each stage its name, ``cka_before``, ``cka_twin`` and ``drift``; and the means of
            ``cka_before`` over the first and the last third of the stages without the head (``cka_early``,
            ``cka_late``), of ``cka_twin`` over all of them.
        """
        now = _activations(module, self.sample)
        moved = stage_cka(_activations(self.before, self.sample), now)
        twins = {} if self.twin is None else stage_cka(now, _activations(self.twin, self.sample))
        before, after = (model.backbone.state_dict() for model in (self.before, module))
        drift = weight_drift(before, after, module.stages.parameter_stage())
        rows = [
            {"stage": name, "cka_before": moved.get(name), "cka_twin": twins.get(name), "drift": drift.get(number)}
            for number, name in enumerate(module.stages.names)
        ]
        early, late = thirds(list(moved.values()))
        return {
            "stages": rows,
            "cka_early": early,
            "cka_late": late,
            "cka_twin": float(np.mean(list(twins.values()))) if twins else None,
        }

    def pointing(self, module: TaskModule) -> Values:
        """Return the share of Grad-CAM in the right cell of grids, for the module and for one with random weights.

        The grids are made of images that the module classifies rightly, of each class the surer half. Nothing is
        returned where fewer than two classes hold such an image.
        """
        layer, seed = self.settings.target_layer, self.trial.seed
        found = grad_cam(module, self.sample.images, layer=layer, attribute=BACKBONE)
        sure = self.sample.some(surer_half(found.probabilities, self.sample.labels))
        if self.settings.grids == 0 or len(np.unique(sure.labels)) < 2:
            return {}
        grids = pointing_grids(sure.images, sure.labels, self.settings.grids, seed=seed)
        *_, (_, random) = weight_randomisation_cascade(module, seed=seed)
        estimate_batch_norm(random, as_inputs(random, self.sample.images))
        maps, control = (_explain(model, grids, layer) for model in (module, random))
        if self.panel is not None:
            kept: dict[str, npt.ArrayLike] = {
                "images": grids.images[:3],
                "maps": maps[:3],
                "control": control[:3],
                "classes": grids.classes[:3],
            }
            save_arrays(self.trial.folder, "pointing", kept)
        return {
            "pointing_share": float(pointing_share(maps, grids.cells).mean()),
            "pointing_share_randomised": float(pointing_share(control, grids.cells).mean()),
        }

    def road(self, module: TaskModule) -> Values:
        """Return the ROAD score of the maps of the predicted classes; 0 for maps that rank pixels at random."""
        count = self.settings.road_images
        if count == 0:
            return {}
        images = sample_images(self.images, count).images
        found = grad_cam(module, images, layer=self.settings.target_layer, attribute=BACKBONE)
        scores = road(module, images, found.maps, found.classes, removed=(0.3, 0.7), seed=self.trial.seed)
        return {"road": float(scores.combined.mean())}

    def sanity(self, module: TaskModule) -> Values:
        """Return the rank correlation of maps with those of networks that are random from the head down.

        Returns:
            ``cascade``: a row for each stage down to which the weights are random, with the mean over the images;
            ``gradcam_correlation`` and ``guided_correlation`` with all weights random, the share of Grad-CAM maps that
            are flat then, and the number of images.
        """
        found = randomisation_check(
            module,
            self.sample.images,
            module.stages,
            layer=self.settings.target_layer,
            attribute=BACKBONE,
            steps=self.settings.cascade_steps,
            seed=self.trial.seed,
        )
        cams = found.grad_cam.mean(1)
        guided = [None] * len(cams) if found.guided is None else found.guided.mean(1).tolist()
        if self.panel is not None:
            kept = {"images": self.sample.images[:3].numpy(), "grad_cam": found.grad_cam_maps}
            kept |= {"guided": found.guided_maps} if found.guided_maps is not None else {}
            save_arrays(self.trial.folder, "sanity", kept)
        rows = zip(found.stages, cams.tolist(), guided, strict=True)
        return {
            "cascade": [{"stage": name, "Grad-CAM": cam, "guided backpropagation": value} for name, cam, value in rows],
            "gradcam_correlation": float(cams[-1]),
            "guided_correlation": guided[-1],
            "gradcam_flat": float(found.flat[-1].mean()),
            "explained_images": len(self.sample.labels),
        }

    def keep_panels(self, module: TaskModule) -> None:
        """Keep the maps of the panel images before, during and after training beside the record."""
        if self.panel is None:
            return
        found = self._panels(module)
        kept: dict[str, npt.ArrayLike] = {
            "images": self.panel.images.numpy(),
            "labels": self.panel.labels,
            "class_names": np.array(self.panel.class_names),
            "titles": np.array(list(found)),
            "layer": np.array([maps.layer for maps in found.values()]),
        }
        for name in ("maps", "classes", "probabilities"):
            kept[name] = np.stack([getattr(maps, name) for maps in found.values()])
        save_arrays(self.trial.folder, "panels", kept)

    def _panels(self, module: TaskModule) -> dict[str, GradCAMMaps]:
        """Return the panels of the fit; the first and the last computed anew, where an interrupted fit lost them."""
        callbacks: list[Any] = getattr(self.fits.best.trainer, "callbacks", [])
        logger = next(callback for callback in callbacks if isinstance(callback, GradCAMLogger))
        during = dict(logger.snapshots)
        first = during.pop("before training", None) or logger.explain_images(self.before)
        last = during.pop("after training", None) or logger.explain_images(module)
        return {"before training": first, **during, "after training": last}

    def features(self, module: TaskModule, *, before: bool) -> Values:
        """Return how far images made for single channels excite them, beside noise and real images; keep the images.

        Args:
            module: The trained module.
            before: Whether to look at the module before training too.

        Returns:
            ``features``: a row for each layer and moment.
        """
        count = self.settings.visualised_channels
        if count == 0 or self.panel is None:
            return {}
        rows: list[Values] = []
        pictures: dict[str, npt.ArrayLike] = {}
        models = {"before training": self.before, "after training": module}
        for when, model in list(models.items())[0 if before else 1 :]:
            for layer in three_depths(model):
                row, images, channels = self._visualise(model, layer, count)
                rows.append({"when": when, **row})
                pictures |= {f"{when}|{layer}|images": images, f"{when}|{layer}|channels": channels}
        save_arrays(self.trial.folder, "features", pictures)
        return {"features": rows}

    def _visualise(
        self, model: TaskModule, layer: str, count: int
    ) -> tuple[Values, npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        real = channel_activations(model, self.sample.images, layer, attribute=BACKBONE)
        spread = np.linspace(0, real.shape[1] - 1, min(count, real.shape[1]) + 2)[1:-1]
        channels = np.unique(spread.round().astype(int)).tolist()
        size = self.settings.image_size
        found = visualise_channels(
            model,
            layer,
            channels,
            image_size=size,
            steps=self.settings.visualisation_steps,
            jitter=size // 16,
            attribute=BACKBONE,
            seed=self.trial.seed,
        )
        strongest = real[:, channels].max(0)
        row = {
            "layer": layer,
            "optimised": float(found.activations.mean()),
            "strongest_real": float(strongest.mean()),
            "noise": float(found.start.mean()),
            "above_all_real": float((found.activations > strongest).mean()),
        }
        return row, found.images, found.channels


def thirds(values: list[float]) -> tuple[float, float]:
    """Return the mean of the first and of the last third of the values."""
    third = max(1, round(len(values) / 3))
    return float(np.mean(values[:third])), float(np.mean(values[-third:]))


def three_depths(module: TaskModule) -> list[str]:
    """Return the modules of an early, a middle and the last stage before the head, for a look at their channels."""
    known = dict(module.backbone.named_modules())
    names = [name for name in module.stages.names[:-1] if name in known]
    places = [len(names) // 4, len(names) // 2, len(names) - 1]
    return list(dict.fromkeys(names[place] for place in places)) if names else []


def _activations(module: TaskModule, sample: LabelledImages) -> dict[str, torch.Tensor]:
    return stage_activations(module.backbone, sample.images, module.stages, normalise=module.normalise)


def _explain(model: torch.nn.Module, grids: PointingGrids, layer: str | None) -> npt.NDArray[np.float32]:
    return grad_cam(model, grids.images, grids.classes, layer=layer, attribute=BACKBONE, batch_size=16).maps


__all__ = ["Look", "check_explanations", "gradcam_logger", "panel_images", "thirds", "three_depths"]
