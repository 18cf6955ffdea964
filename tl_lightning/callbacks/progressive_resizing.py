"""Train on small images first and on large ones later, in any LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F

from tl_lightning.errors import UserError


def growing(first: int, last: int, epochs: int, steps: int = 3, multiple: int = 8) -> dict[int, int]:
    """Return sides by their first epoch: from ``first`` to ``last`` pixels in equal steps over the epochs.

    Args:
        first: Side at the start.
        last: Side at the end; the last part of the epochs trains at it.
        epochs: Epochs of the fit.
        steps: Number of different sides, at most one an epoch.
        multiple: Sides between the two are rounded to a multiple of it.
    """
    if not 1 <= first <= last or epochs < 1 or steps < 1:
        raise UserError(f"sides cannot grow from {first} to {last} pixels in {steps} steps over {epochs} epochs")
    steps = min(steps, epochs)
    sides = {}
    for step in range(steps):
        exact = first + (last - first) * step / max(steps - 1, 1) if steps > 1 else last
        between = min(max(round(exact / multiple) * multiple, first), last)
        sides[epochs * step // steps] = last if step == steps - 1 else first if step == 0 else between
    return sides


class ProgressiveResizing(Callback):
    """Shrinks every training batch, on its device, to the side that its epoch trains at; validation and test never.

    Early epochs cost less and the network sees all sizes (Howard 2018 in the DAWNBench entry of fast.ai; Tan & Le 2021,
    "EfficientNetV2"). A batch is a dict with ``image`` float [B, C, S, S] or a list ``[image, label, ...]``. The side
    is a pure function of the epoch, so that a resumed run agrees with one that was never stopped. Put it behind
    augmentation, which then sees the full images.

    Args:
        sides: Side in pixels by the first epoch in which it holds; epoch 0 must be among them. See ``growing``.

    Raises:
        UserError: For impossible sides, a side above that of the images, cached activations, or a batch with boxes
            or masks.
    """

    def __init__(self, sides: Mapping[int, int]) -> None:
        wrong = {epoch: side for epoch, side in sides.items() if epoch < 0 or side < 1}
        if 0 not in sides or wrong:
            raise UserError(
                "ProgressiveResizing needs the side of epoch 0, epochs that are not negative and sides of at least one "
                f"pixel, not {dict(sides)}"
            )
        self.sides = dict(sorted(sides.items()))

    def side_at(self, epoch: int) -> int:
        """Return the side in pixels of an epoch, counted from 0."""
        return self.sides[max(first for first in self.sides if first <= epoch)]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the smaller images into the batch."""
        key = _image_key(batch)
        images, side = batch[key], self.side_at(trainer.current_epoch)
        if max(images.shape[-2:]) == side == min(images.shape[-2:]):
            return
        if side > min(images.shape[-2:]):
            raise UserError(
                f"ProgressiveResizing shall train at {side} pixels, but the images have {min(images.shape[-2:])}: "
                "give the data module the largest side"
            )
        with torch.no_grad():
            batch[key] = _shrunk(images, side)


def _shrunk(images: Tensor, side: int) -> Tensor:
    """Return the images [B, C, side, side] in the memory format and type that they had."""
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    small = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True).clamp(images.min(), images.max())
    return small.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _image_key(batch: Any) -> Any:
    """Return where a batch holds its images."""
    if isinstance(batch, dict) and "activation" in batch:
        raise UserError(
            "ProgressiveResizing got cached activations, which belong to images of one size: take the callback out, "
            "or train without the cache"
        )
    if isinstance(batch, dict) and ("boxes" in batch or "mask" in batch):
        raise UserError("ProgressiveResizing resizes images only, but the batch holds boxes or masks that must follow")
    if isinstance(batch, dict) and isinstance(batch.get("image"), Tensor):
        return "image"
    if isinstance(batch, list) and batch and isinstance(batch[0], Tensor):
        return 0
    raise UserError(
        f"ProgressiveResizing needs a batch that is a dict with 'image' or a list [image, label], not "
        f"{type(batch).__name__}: change the data set or the collate function"
    )
