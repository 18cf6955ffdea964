"""Object detection with any backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from tl_lightning.errors import UserError, unknown_name
from tl_lightning.tasks.dense import DenseModule
from tl_lightning.tasks.detectors import DETECTORS, HeadOptions, build_detector

Batch = dict[str, Any]
Detections = list[dict[str, Tensor]]


class DetectionModule(DenseModule):
    """Fine-tune any backbone for object detection.

    A batch is a dict with ``image`` float [B, 3, H, W] in [0, 1], ``boxes``, a list of float [n, 4] (x1, y1, x2, y2 in
    pixels), ``labels``, a list of int64 [n] from 1, and perhaps ``crowd``, a list of bool [n]: objects that are not
    trained on and count neither as found nor as missed.

    Logged: ``train/loss`` and its terms and, for ``val`` and ``test``, COCO's ``map`` (mean average precision over
    IoU thresholds of 0.5 to 0.95), ``map_50``, ``map_75`` and ``mar_100``, as fractions; -1 where there is no object.
    ``map_per_class`` holds the average precision of every label that occurs, after an evaluation.

    Args:
        backbone: See ``TaskModule``, as for the other arguments not named here.
        num_classes: Object classes, the background not counted.
        detector: ``"faster_rcnn"``, ``"retinanet"`` (both with a feature pyramid) or ``"ssdlite"``.
        pyramid_channels: Channels of the feature pyramid, a multiple of 32 (the papers have 256, for larger images).
        anchor_scale: Side of the anchors in strides of their map (RetinaNet 4; Faster R-CNN 8, for images of 800 px).
        task_options: Passed on to ``TaskModule``.

    Raises:
        UserError: An unknown detector, or a backbone without feature maps.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        detector: str = "retinanet",
        pyramid_channels: int = 128,
        anchor_scale: float = 4.0,
        **task_options: Any,
    ) -> None:
        if detector not in DETECTORS:
            raise unknown_name("detector", detector, DETECTORS)
        if num_classes < 1:
            raise UserError(f"detection needs at least 1 class, not {num_classes}")
        if pyramid_channels < 32 or pyramid_channels % 32:
            raise UserError(f"pyramid_channels must be a multiple of 32, not {pyramid_channels}")
        if not anchor_scale > 0:
            raise UserError(f"anchor_scale must be above 0, not {anchor_scale}")
        super().__init__(backbone, num_classes, **task_options)
        self.save_hyperparameters("detector", "pyramid_channels", "anchor_scale")
        self.use_feature_maps(DETECTORS[detector].strides)
        self.detector = build_detector(
            detector, self.backbone, HeadOptions(num_classes, pyramid_channels, anchor_scale)
        )
        self.detector.to(memory_format=self._memory_format)
        self.metrics = nn.ModuleDict({part: _average_precision() for part in ("val", "test")})
        self.map_per_class: dict[int, float] = {}

    def forward(self, image: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return the detections of images [B, 3, H, W] in [0, 1]: ``boxes``, ``labels`` and ``scores`` of each.

        In train mode ``targets`` (``boxes`` and ``labels`` of each image) are needed and the terms of the loss are
        returned.
        """
        return self.detector(self.normalise(image), targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        image = self.image_of(batch)
        terms = self(image, [_without_crowds(target) for target in self._targets(batch)])
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(image), "sync_dist": True}
        self.log("train/loss", loss.detach(), prog_bar=True, **options)
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()}, **options)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics."""
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the test metrics."""
        self._evaluation_step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Detections:
        """Return the detections of every image of a batch."""
        return self(self.image_of(batch))

    def _evaluation_step(self, batch: Batch, part: str) -> None:
        detections = [{name: value.detach() for name, value in found.items()} for found in self(self.image_of(batch))]
        targets = [
            {"boxes": t["boxes"], "labels": t["labels"], "iscrowd": t["crowd"].long()} for t in self._targets(batch)
        ]
        self.metrics[part].update(detections, targets)  # type: ignore[operator]

    def _targets(self, batch: Batch) -> list[dict[str, Tensor]]:
        boxes, labels = self.target_of(batch, "boxes"), self.target_of(batch, "labels")
        crowd = batch.get("crowd") or [torch.zeros_like(found, dtype=torch.bool) for found in labels]
        return [
            {"boxes": b, "labels": found, "crowd": marks} for b, found, marks in zip(boxes, labels, crowd, strict=True)
        ]

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics("test")

    def _log_metrics(self, part: str) -> None:
        metric: Any = self.metrics[part]
        found = metric.compute()
        metric.reset()
        names = {"map": part == "val", "map_50": False, "map_75": False, "mar_100": False}
        for name, shown in names.items():
            self.log(f"{part}/{name}", found[name].to(self.device), prog_bar=shown)
        labels, values = found["classes"].reshape(-1).tolist(), found["map_per_class"].reshape(-1).tolist()
        self.map_per_class = {label: value for label, value in zip(labels, values, strict=True) if value >= 0}


def _average_precision() -> MeanAveragePrecision:
    metric = MeanAveragePrecision(class_metrics=True)
    metric.warn_on_many_detections = False
    return metric


def _without_crowds(target: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = ~target["crowd"]
    return {"boxes": target["boxes"][kept], "labels": target["labels"][kept]}
