"""Augmentation of whole batches on the device that trains, in any LightningModule."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tl_lightning.data.augment import Augmentation, Mixing
from tl_lightning.data.augment.geometry import Padding
from tl_lightning.data.augment.random import BatchPosition
from tl_lightning.errors import UserError


class BatchAugmentation(Callback):
    """Augment every training batch, on its device, before the training step; validation and test never.

    A batch is a dict with ``image`` (float [B, C, H, W], in [0, 1] where colours change) and ``label``, or a list
    ``[image, label, ...]``. MixUp and CutMix add ``soft_label`` (float [B, classes]) to a dict and put it in the
    place of the label in a list. All random numbers are a pure function of (seed, epoch, batch index, rank):
    a resumed run and any number of workers see the same images.

    Args:
        flip: Mirror left to right with probability one half.
        vertical_flip: Mirror top to bottom with probability one half.
        crop_padding: Shift by up to this many pixels in x and y (a crop of the padded image).
        resized_crop: Smallest and largest share of the area that a crop, shown in full size, covers.
        color: Strength of the change of brightness, contrast and saturation: one number or one for each.
        randaugment: Number of RandAugment operations an image.
        magnitude: Their magnitude, 0 to 30, as in torchvision.
        erasing: Probability that a rectangle of the image is painted in a random colour.
        mixup: alpha of MixUp; 0 switches it off.
        cutmix: alpha of CutMix; 0 switches it off. With both on, each image takes one of them.
        num_classes: For MixUp and CutMix; by default the module's ``num_classes``.
        padding: What geometric operations show beyond the border: the mirrored image or ``"zeros"``.
        seed: Fixes all random numbers.

    Raises:
        UserError: For an impossible value, a batch of another form, images that are no floats in [0, 1], or
            MixUp or CutMix without ``num_classes``.
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
        mixup: float = 0.0,
        cutmix: float = 0.0,
        num_classes: int | None = None,
        padding: Padding = "reflection",
        seed: int = 0,
    ) -> None:
        self.augmentation = Augmentation(
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
        self.mixing = Mixing(mixup, cutmix, seed)
        self.num_classes = num_classes
        self._classes = num_classes or 0
        self._checked = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the number of classes where labels are to be mixed."""
        self._checked = False
        if self.mixing.enabled and self.num_classes is None:
            found = getattr(pl_module, "num_classes", None)
            if not isinstance(found, int):
                raise UserError(
                    "BatchAugmentation needs num_classes for mixup and cutmix: give it to the callback, "
                    f"or let {type(pl_module).__name__} have an attribute num_classes"
                )
            self._classes = found

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the augmented images into the batch."""
        image_key, label_key, soft_key = _keys(batch)
        images = batch[image_key]
        if not self._checked:
            self._check(batch, images, label_key)
        position = BatchPosition(trainer.current_epoch, batch_idx, trainer.global_rank)
        with torch.no_grad():
            augmented = self.augmentation(images, position)
            if self.mixing.enabled:
                soft = self._soft_labels(batch, label_key, soft_key, augmented.dtype)
                augmented, batch[soft_key] = self.mixing(augmented, soft, position)
        batch[image_key] = _like(augmented, images)

    def _soft_labels(self, batch: Any, label_key: Any, soft_key: Any, dtype: torch.dtype) -> Tensor:
        labels = batch["soft_label"] if soft_key == "soft_label" in batch else batch[label_key]
        if labels.ndim == 2:
            return labels
        one_hot = labels.new_zeros(len(labels), self._classes, dtype=dtype)
        return one_hot.scatter_(1, labels[:, None], 1.0)

    def _check(self, batch: Any, images: Tensor, label_key: Any) -> None:
        """Look at the values of the first batch, once, since reading them makes the device wait."""
        self._checked = True
        if not images.is_floating_point() or images.ndim != 4:
            raise UserError(
                f"BatchAugmentation needs float images [B, C, H, W], not {images.dtype} {list(images.shape)}: "
                "scale them to [0, 1] in the data module"
            )
        if self.augmentation.changes_values:
            _check_range(images)
        if self.mixing.enabled:
            self._check_labels(batch, label_key)

    def _check_labels(self, batch: Any, label_key: Any) -> None:
        labels = batch[label_key]
        if labels.ndim == 1 and not 0 <= int(labels.min()) <= int(labels.max()) < self._classes:
            raise UserError(
                f"BatchAugmentation mixes labels of {self._classes} classes, but the batch holds labels "
                f"{int(labels.min())} to {int(labels.max())}: correct num_classes"
            )


def _keys(batch: Any) -> tuple[Any, Any, Any]:
    """Return where a batch holds images and labels, and where the mixed labels go."""
    if isinstance(batch, dict) and isinstance(batch.get("image"), Tensor):
        return "image", "label", "soft_label"
    if isinstance(batch, list) and len(batch) >= 2 and isinstance(batch[0], Tensor):
        return 0, 1, 1
    if isinstance(batch, dict) and "activation" in batch:
        raise UserError(
            "BatchAugmentation got cached activations, which can no longer be augmented: take the callback out "
            "and give its augmentation to CachedDataModule with views=K, or train without the cache"
        )
    raise UserError(
        f"BatchAugmentation needs a batch that is a dict with 'image' or a list [image, label], not "
        f"{type(batch).__name__}: change the data set or the collate function"
    )


def _check_range(images: Tensor) -> None:
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if low < 0 or high > 1:
        raise UserError(
            f"BatchAugmentation changes colours of images in [0, 1], but the batch spans {low:.3g} to {high:.3g}: "
            "normalise in the module, after the augmentation"
        )


def _like(augmented: Tensor, images: Tensor) -> Tensor:
    """Keep the memory format of the batch, so that a channels_last model sees channels_last images."""
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        return augmented.contiguous(memory_format=torch.channels_last)
    return augmented
