"""Image classification with any backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from tl_lightning.errors import UserError
from tl_lightning.tasks.base import TaskModule

Batch = dict[str, Any] | Sequence[Tensor]


class TransferModule(TaskModule):
    """Fine-tune any backbone for image classification.

    A batch is a dict with ``image`` float [B, 3, H, W] in [0, 1] and ``label`` int64 [B], or a pair of them. MixUp and
    CutMix put ``soft_label`` float [B, C] beside them, in a pair in place of ``label``, which the loss then uses.

    Logged: ``train/loss``, ``train/accuracy`` and, for ``val`` and ``test``, ``loss``, ``accuracy``, ``macro_f1``,
    ``auroc`` (one against the rest, macro mean) and ``ece`` (expected calibration error, 15 bins, Guo 2017), all as
    fractions; the confusion matrix of the last evaluation is ``confusion``.

    Args:
        backbone: See ``TaskModule``, as for the other arguments not named here.
        num_classes: Number of classes, at least 2.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        class_weights: Weight of each class in the loss; equal by default.
        aux_loss_weight: Weight of the auxiliary heads of GoogLeNet and Inception (0.4 in Szegedy 2015 and 2016).
        task_options: Passed on to ``TaskModule``.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        aux_loss_weight: float = 0.4,
        **task_options: Any,
    ) -> None:
        if num_classes < 2:
            raise UserError(f"classification needs at least 2 classes, not {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
        if class_weights is not None and len(class_weights) != num_classes:
            raise UserError(f"class_weights has {len(class_weights)} values for {num_classes} classes")
        super().__init__(backbone, num_classes, **task_options)
        self.save_hyperparameters("label_smoothing", "class_weights", "aux_loss_weight")
        weights = torch.tensor(class_weights) if class_weights is not None else None
        self.register_buffer("class_weights", weights, persistent=False)
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "macro_f1": MulticlassF1Score(num_classes, average="macro"),
                "auroc": MulticlassAUROC(num_classes),
                "ece": MulticlassCalibrationError(num_classes, n_bins=15),
            },
            compute_groups=False,
        )
        self.metrics = nn.ModuleDict({part: metrics.clone(prefix=f"{part}/") for part in ("val", "test")})
        self.confusion_metric = MulticlassConfusionMatrix(num_classes)
        self.confusion: Tensor | None = None
        self._halves: tuple[Callable[[Tensor], Sequence[Tensor]], nn.Module] | None = None

    def use_prefix(self, prefix: Callable[[Tensor], Sequence[Tensor]] | None, suffix: nn.Module | None) -> None:
        """Run images through ``prefix`` (a ``FrozenPrefix``) and ``suffix`` in place of the backbone; None ends it.

        Both compute what the backbone does while its first half is frozen; the suffix shares its parameters.
        """
        self._halves = None if prefix is None or suffix is None else (prefix, suffix)

    def output(self, batch: dict[str, Any]) -> Any:
        """Return the logits for a batch that holds ``image``, or ``activation`` and a suffix to run on it."""
        if self._halves is None or "activation" in batch:
            return super().output(batch)
        prefix, suffix = self._halves
        suffix.training = self.training  # outside the module tree, so train() does not reach it
        return self.run(suffix, prefix(batch["image"])[0])

    def loss(self, logits: Any, target: Tensor) -> Tensor:
        """Return the mean cross entropy; ``logits`` may be the tuple of a backbone with auxiliary heads."""
        main, *auxiliary = logits if isinstance(logits, tuple) else (logits,)
        value = self._cross_entropy(main, target)
        for head in auxiliary:
            value = value + self.hparams["aux_loss_weight"] * self._cross_entropy(head, target)
        return value

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        weights: Any = self.class_weights
        return F.cross_entropy(logits.float(), target, weight=weights, label_smoothing=self.hparams["label_smoothing"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        batch = as_dict(batch)
        logits = self.output(batch)
        loss = self.loss(logits, batch["soft_label"] if "soft_label" in batch else batch["label"])
        main = logits[0] if isinstance(logits, tuple) else logits
        label = batch["label"] if batch["label"].ndim == 1 else batch["label"].argmax(1)  # mixed, in a pair
        accuracy = (main.detach().argmax(1) == label).float().mean()
        size = len(label)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": size, "sync_dist": True}
        self.log("train/loss", loss.detach(), prog_bar=True, **options)
        self.log("train/accuracy", accuracy, **options)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics."""
        self._evaluation_step(as_dict(batch), "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the test metrics."""
        self._evaluation_step(as_dict(batch), "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the class probabilities [B, C] of a batch, labelled or not."""
        return self.output(as_dict(batch)).float().softmax(1)

    def _evaluation_step(self, batch: dict[str, Any], part: str) -> None:
        logits = self.output(batch).float()
        label = batch["label"]
        self._part_metrics(part).update(logits.softmax(1), label)
        self.confusion_metric.update(logits, label)
        loss = F.cross_entropy(logits, label)
        shown = part == "val"
        self.log(f"{part}/loss", loss, on_epoch=True, prog_bar=shown, batch_size=len(label), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics("test")

    def _part_metrics(self, part: str) -> MetricCollection:
        metrics = self.metrics[part]
        assert isinstance(metrics, MetricCollection)  # a ModuleDict forgets the type of what it holds
        return metrics

    def _log_metrics(self, part: str) -> None:
        self.log_dict(self._part_metrics(part).compute())
        self._part_metrics(part).reset()
        self.confusion = self.confusion_metric.compute().cpu()
        self.confusion_metric.reset()


def as_dict(batch: Batch) -> dict[str, Any]:
    """Return the batch as a dict; a pair is taken as image and label, a lone tensor as images."""
    if isinstance(batch, dict):
        return batch
    if isinstance(batch, Tensor):
        return {"image": batch}
    return {"image": batch[0], "label": batch[1]}
