"""Semantic segmentation with any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from tl_lightning.errors import UserError, unknown_name
from tl_lightning.tasks.dense import DenseModule
from tl_lightning.tasks.segmentation_heads import SEGMENTATION_HEADS

Batch = dict[str, Any]

VOID = 255
_OUTPUT_STRIDES = (8, 16, 32)
_FINEST_STRIDE = 8


class SegmentationModule(DenseModule):
    """Fine-tune any backbone for semantic segmentation.

    A batch is a dict with ``image`` float [B, 3, H, W] in [0, 1] and ``mask`` int64 [B, H, W], 255 where no class is
    known; such pixels count neither in the loss nor in the metrics.

    Logged: ``train/loss``, ``train/pixel_accuracy`` and, for ``val`` and ``test``, ``loss``, ``miou`` (the mean over
    classes of intersection over union, classes that neither occur nor are predicted left out) and
    ``pixel_accuracy``, as fractions. ``iou_per_class`` [C] holds every class's IoU after an evaluation.

    Args:
        backbone: See ``TaskModule``, as for the other arguments not named here.
        num_classes: Number of classes, the background included.
        head: ``"deeplabv3"`` (Chen et al. 2017), ``"fcn"`` (Long et al. 2015) or ``"lraspp"`` (Howard et al. 2019).
        output_stride: Largest stride of the backbone's maps, 8, 16 or 32; below the model's own its last strides are
            replaced by dilation.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        class_weights: Weight of each class in the loss; equal by default.
        task_options: Passed on to ``TaskModule``.

    Raises:
        UserError: An unknown head, a backbone without feature maps, or one whose stride cannot be limited.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        head: str = "lraspp",
        output_stride: int = 16,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        **task_options: Any,
    ) -> None:
        if head not in SEGMENTATION_HEADS:
            raise unknown_name("segmentation head", head, SEGMENTATION_HEADS)
        if output_stride not in _OUTPUT_STRIDES:
            raise UserError(f"output_stride must be 8, 16 or 32, not {output_stride}")
        if num_classes < 2:
            raise UserError(f"segmentation needs at least 2 classes, not {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise UserError(f"class_weights has {len(class_weights)} values for {num_classes} classes")
        super().__init__(backbone, num_classes, **task_options)
        self.save_hyperparameters("head", "output_stride", "label_smoothing", "class_weights")
        strides = [stride for stride in _OUTPUT_STRIDES if _FINEST_STRIDE <= stride <= output_stride]
        self.use_feature_maps(strides, output_stride)
        self.head = SEGMENTATION_HEADS[head](self.backbone, num_classes)
        self.head.to(memory_format=self._memory_format)
        weights = torch.tensor(class_weights) if class_weights is not None else None
        self.register_buffer("class_weights", weights, persistent=False)
        metrics = MetricCollection(
            {
                "miou": MulticlassJaccardIndex(num_classes, ignore_index=VOID),
                "iou": MulticlassJaccardIndex(num_classes, average="none", ignore_index=VOID, zero_division=torch.nan),
                "pixel_accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=VOID),
            },
            compute_groups=[["miou", "iou"], ["pixel_accuracy"]],
        )
        self.metrics = nn.ModuleDict({part: metrics.clone(prefix=f"{part}/") for part in ("val", "test")})
        self.iou_per_class: Tensor | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, classes, H, W] of images [B, 3, H, W] in [0, 1]."""
        logits = self.head(self.backbone.pyramid(self.normalise(image)))
        return F.interpolate(logits.float(), size=image.shape[-2:], mode="bilinear", align_corners=False)

    def loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the mean cross entropy over the pixels whose class is known; 0 if there is none."""
        weights: Any = self.class_weights
        total = F.cross_entropy(
            logits,
            mask,
            weight=weights,
            ignore_index=VOID,
            label_smoothing=self.hparams["label_smoothing"],
            reduction="sum",
        )
        known = (mask != VOID).float()
        if weights is not None:
            known = known * weights[mask.clamp(max=self.num_classes - 1)]
        return total / known.sum().clamp(min=1e-6)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        mask = self.target_of(batch, "mask")
        logits = self(self.image_of(batch))
        loss = self.loss(logits, mask)
        known = mask != VOID
        accuracy = (logits.detach().argmax(1) == mask).sum() / known.sum().clamp(min=1)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(mask), "sync_dist": True}
        self.log("train/loss", loss.detach(), prog_bar=True, **options)
        self.log("train/pixel_accuracy", accuracy, **options)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics."""
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the test metrics."""
        self._evaluation_step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the class of every pixel, int64 [B, H, W]."""
        return self(self.image_of(batch)).argmax(1)

    def _evaluation_step(self, batch: Batch, part: str) -> None:
        mask = self.target_of(batch, "mask")
        logits = self(self.image_of(batch))
        self.metrics[part].update(logits.argmax(1), mask)  # type: ignore[operator]
        loss = self.loss(logits, mask)
        shown = part == "val"
        self.log(f"{part}/loss", loss, on_epoch=True, prog_bar=shown, batch_size=len(mask), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics("test")

    def _log_metrics(self, part: str) -> None:
        metrics: Any = self.metrics[part]
        found = metrics.compute()
        metrics.reset()
        self.iou_per_class = found.pop(f"{part}/iou").cpu()
        self.log_dict(found)
