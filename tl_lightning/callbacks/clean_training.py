"""Accuracy and loss on the training images as they are, for the gap to validation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import functional as F

from tl_lightning.callbacks.training_images import same_images
from tl_lightning.errors import UserError


class CleanTrainingMetrics(Callback):
    """Evaluates the training images like validation images, whenever a classifier is validated.

    What a training step logs is no measure of overfitting: its images are augmented, dropout is on, and the weights
    change within the epoch. Here the module is in evaluation mode and the images are clean; logged are
    ``train/clean_accuracy`` and ``train/clean_loss`` (cross entropy without label smoothing). The order of training
    batches, global random numbers and the module stay as they were.

    A batch is a dict with ``image`` and ``label``, or a pair of them; the module returns logits for images.

    Raises:
        UserError: In the first validation, where batches hold cached activations in place of images.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate and log; Lightning has set evaluation mode and switched gradients off."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        correct, loss, images = 0.0, 0.0, 0
        with isolate_rng():
            for batch in same_images(trainer.train_dataloader, trainer):
                moved = trainer.strategy.batch_to_device(
                    trainer.precision_plugin.convert_input(batch), dataloader_idx=0
                )
                logits, labels = _logits(pl_module, moved)
                correct += float((logits.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
                images += len(labels)
        size = max(images, 1)
        values = {"train/clean_accuracy": correct / size, "train/clean_loss": loss / size}
        pl_module.log_dict(values, on_epoch=True, batch_size=size, sync_dist=trainer.world_size > 1)


def _logits(pl_module: pl.LightningModule, batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict) and "activation" in batch:
        raise UserError(
            "CleanTrainingMetrics got cached activations in place of images: take the callback out, or train without "
            "the cache"
        )
    images, labels = (batch["image"], batch["label"]) if isinstance(batch, dict) else (batch[0], batch[1])
    output = pl_module(images)
    return (output[0] if isinstance(output, tuple) else output).float(), labels
