"""Grad-CAM panels of the same images before, during and after training, in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from tl_lightning.analysis.attribution import GradCAMMaps, grad_cam
from tl_lightning.analysis.target_layer import backbone_of
from tl_lightning.callbacks.gradcam_panel import gradcam_panel
from tl_lightning.errors import UserError, unknown_name

MOST_IMAGES = 16


class GradCAMLogger(Callback):
    """Log a panel of images, Grad-CAM maps and predictions, and leave the model exactly as it was.

    Panels are drawn at the start of an epoch, before the first one and then after every ``every_n_epochs``, and at the
    end of the fit; a last figure shows all of them (the first, the last and up to three between). Modes, gradients,
    ``requires_grad``, hooks and random numbers are the same afterwards, so that a run with panels trains as one
    without; see ``analysis.untouched``. Under DDP only rank 0 draws.

    Works in any LightningModule whose forward maps images [N, 3, H, W] in [0, 1] to class scores [N, C].

    Args:
        images: Float [N, 3, H, W] in [0, 1], at the size the model is trained with; at most 16.
        labels: True classes [N].
        class_names: Names of the classes for the captions.
        every_n_epochs: Epochs between panels.
        target_layer: Path of a module within the backbone; the last feature maps before the classifier by default.
        attribute: Path of the backbone within the LightningModule; ``""`` for the whole module.
        explain: The class whose map is drawn: the label, so that all times answer the same question, or the predicted
            one. Without labels it is the predicted one.
        tag: Name of the figures in TensorBoard; the last one is ``<tag>/over_time``.

    Attributes:
        snapshots: Title of each panel of the fit (``before training``, ``after 2 epochs``, ...) to its maps.

    Raises:
        UserError: Images out of range, an unknown layer, no TensorBoard logger, or sharded parameters.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | Sequence[int] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        target_layer: str | None = None,
        attribute: str = "backbone",
        explain: Literal["label", "predicted"] = "label",
        tag: str = "gradcam",
    ) -> None:
        self.images = _checked_images(images)
        self.labels = _checked_labels(labels, len(images), class_names)
        if every_n_epochs < 1:
            raise UserError(f"every_n_epochs must be at least 1, not {every_n_epochs}")
        if explain not in ("label", "predicted"):
            raise unknown_name("class to explain", explain, ["label", "predicted"])
        self.class_names = class_names
        self.every_n_epochs = every_n_epochs
        self.target_layer = target_layer
        self.attribute = attribute
        self.explain = explain
        self.tag = tag
        self.snapshots: dict[str, GradCAMMaps] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find mistakes before any work is done."""
        if stage != "fit":
            return
        layers = [name for name, _ in backbone_of(pl_module, self.attribute).named_modules() if name]
        if self.target_layer is not None and self.target_layer not in layers:
            raise unknown_name("target layer", self.target_layer, layers)
        if not (_tensorboards(trainer) or getattr(trainer, "fast_dev_run", False)):
            raise UserError("GradCAMLogger needs a TensorBoard logger: Trainer(logger=TensorBoardLogger(...))")
        strategy = type(trainer.strategy).__name__
        if strategy in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
            raise UserError(f"GradCAMLogger needs whole parameters on a device, and {strategy} shards them")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a new series of panels."""
        self.snapshots = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the panel of the epochs behind."""
        if trainer.current_epoch % self.every_n_epochs == 0:
            self.log_panel(trainer, pl_module, _title(trainer.current_epoch))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last panel, and all of them together."""
        self.log_panel(trainer, pl_module, "after training")
        if trainer.is_global_zero:
            self._write(trainer, f"{self.tag}/over_time", self.figure(_some(list(self.snapshots))))

    def log_panel(self, trainer: pl.Trainer, pl_module: pl.LightningModule, title: str) -> None:
        """Explain the images with the model as it is now, and log the panel at the trainer's global step.

        May be called at any moment of a fit, also between the backward passes of an accumulated batch.
        """
        if trainer.is_global_zero:
            self.snapshots[title] = self.explain_images(pl_module)
            self._write(trainer, self.tag, self.figure([title]))

    def explain_images(self, pl_module: pl.LightningModule) -> GradCAMMaps:
        """Return the maps of the images with the model as it is now."""
        classes = self.labels if self.explain == "label" else None
        return grad_cam(pl_module, self.images, classes, layer=self.target_layer, attribute=self.attribute)

    def figure(self, titles: Sequence[str] | None = None) -> Figure:
        """Return the figure of some panels of the fit, of all by default."""
        chosen = {title: self.snapshots[title] for title in (self.snapshots if titles is None else titles)}
        return gradcam_panel(self.images.numpy(), chosen, labels=self.labels, class_names=self.class_names)

    def _write(self, trainer: pl.Trainer, tag: str, figure: Figure) -> None:
        for logger in _tensorboards(trainer):
            logger.experiment.add_figure(tag, figure, trainer.global_step)


def _tensorboards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _title(epoch: int) -> str:
    return "before training" if epoch == 0 else f"after {epoch} epoch{'s' if epoch > 1 else ''}"


def _some(titles: list[str], most: int = 5) -> list[str]:
    """Return the first, the last and evenly spaced ones between."""
    steps = torch.linspace(0, len(titles) - 1, min(most, len(titles))).round().long().tolist()
    return [titles[i] for i in steps]


def _checked_images(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or len(images) == 0:
        raise UserError(f"images must be floats [N, 3, H, W], not {images.dtype} {list(images.shape)}")
    if not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise UserError(
            f"images must lie in [0, 1] and not be normalised; they span {float(images.min()):.3g} to "
            f"{float(images.max()):.3g}"
        )
    if len(images) > MOST_IMAGES:
        raise UserError(f"a panel holds at most {MOST_IMAGES} images, not {len(images)}")
    return images.detach().float().cpu().clone()


def _checked_labels(
    labels: Tensor | Sequence[int] | None, count: int, class_names: Sequence[str] | None
) -> list[int] | None:
    if labels is None:
        return None
    numbers = [int(label) for label in labels]
    if len(numbers) != count:
        raise UserError(f"{count} images need as many labels, not {len(numbers)}")
    if min(numbers) < 0 or (class_names is not None and max(numbers) >= len(class_names)):
        raise UserError(f"labels must lie in 0 .. classes - 1, but they span {min(numbers)} to {max(numbers)}")
    return numbers
