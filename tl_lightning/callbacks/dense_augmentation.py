"""Augmentation of batches with boxes or masks, which follow their images."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from tl_lightning.callbacks.augmentation import BatchAugmentation
from tl_lightning.data.augment import Geometry
from tl_lightning.data.augment.geometry import Padding
from tl_lightning.data.augment.random import BatchPosition
from tl_lightning.data.augment.targets import move_boxes, move_masks
from tl_lightning.errors import UserError


class DenseAugmentation(BatchAugmentation):
    """``BatchAugmentation`` for detection and segmentation: boxes and masks move exactly as their images do.

    A batch is a dict with ``image`` float [B, C, H, W] and ``mask`` int64 [B, H, W], or ``boxes`` (a list of float
    [n, 4], in pixels) with ``labels`` and perhaps ``crowd``, lists with an entry a box. Boxes are cut to the image;
    those of which too little is left are taken out of all three. Flips, shifts and crops move boxes exactly; for the
    turned and sheared images of RandAugment the upright boxes around the transformed ones are taken.

    Args:
        flip: See ``BatchAugmentation``, as for the other arguments not named here.
        padding: What geometric operations show beyond the border: ``"zeros"`` (black, void in masks), or, for masks
            alone, ``"reflection"``: mirrored objects would have no boxes.
        min_visible: Least share of a box that must stay within the image, in [0, 1].

    Raises:
        UserError: For an impossible value, or a batch of another form.
    """

    def __init__(
        self,
        *,
        flip: bool = True,
        vertical_flip: bool = False,
        crop_padding: int = 0,
        resized_crop: tuple[float, float] | None = None,
        color: float | tuple[float, float, float] = 0.0,
        randaugment: int = 0,
        magnitude: int = 9,
        erasing: float = 0.0,
        padding: Padding = "zeros",
        min_visible: float = 0.3,
        seed: int = 0,
    ) -> None:
        if not 0 <= min_visible <= 1:
            raise UserError(f"min_visible must lie in [0, 1], not {min_visible}")
        super().__init__(
            flip=flip,
            vertical_flip=vertical_flip,
            crop_padding=crop_padding,
            resized_crop=resized_crop,
            color=color,
            randaugment=randaugment,
            magnitude=magnitude,
            erasing=erasing,
            padding=padding,
            seed=seed,
        )
        self.min_visible = min_visible

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the augmented images, boxes and masks into the batch."""
        if not isinstance(batch, dict) or "image" not in batch or not ("boxes" in batch or "mask" in batch):
            raise UserError(
                "DenseAugmentation needs a batch that is a dict with 'image' and 'boxes' or 'mask'; for images with "
                "labels take BatchAugmentation"
            )
        if "boxes" in batch and self.augmentation.padding == "reflection":
            raise UserError("mirrored objects would have no boxes: use padding='zeros' for detection")
        position = BatchPosition(trainer.current_epoch, batch_idx, trainer.global_rank)
        geometry = self._geometry(batch["image"].shape, position)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if geometry is not None:
            with torch.no_grad():
                self._follow(batch, geometry)

    def _geometry(self, shape: torch.Size, position: BatchPosition) -> Geometry | None:
        """Return the transform that the images of this batch get: its numbers depend on the position alone."""
        operations = self.augmentation._draw_operations(shape[0], position)
        return self.augmentation.sample_geometry(shape, position, operations)

    def _follow(self, batch: dict[str, Any], geometry: Geometry) -> None:
        if "mask" in batch:
            batch["mask"] = move_masks(batch["mask"], geometry)
        if "boxes" in batch:
            height, width = batch["image"].shape[-2:]
            batch["boxes"], kept = move_boxes(batch["boxes"], geometry, height, width, self.min_visible)
            for name in {"labels", "crowd"} & batch.keys():
                batch[name] = [values[mark] for values, mark in zip(batch[name], kept, strict=True)]
