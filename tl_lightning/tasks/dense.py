"""What detection and segmentation share: a backbone without its classifier, with feature maps at several strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tl_lightning.backbones.dilation import limit_stride
from tl_lightning.backbones.pyramid import FeatureBackbone
from tl_lightning.errors import UserError
from tl_lightning.tasks.base import TaskModule


class DenseModule(TaskModule):
    """Base of the tasks that predict for places in an image; subclasses add the heads, the loss and the metrics.

    ``backbone`` is a ``FeatureBackbone``: the plain model up to its deepest feature map. Everything else is new, lies
    outside of it and always trains; to freeze the whole backbone, freeze at depth ``"all"``.
    """

    backbone: FeatureBackbone

    def use_feature_maps(self, strides: Sequence[int], output_stride: int | None = None) -> None:
        """Cut the backbone behind its deepest feature map that is wanted.

        Args:
            strides: Strides of the maps; those that the model does not have are left out.
            output_stride: Largest stride of any map; finer than the model's own by dilated convolutions.

        Raises:
            UserError: The model has no such maps, or its stride cannot be limited.
        """
        if output_stride is not None:
            limit_stride(self.backbone, output_stride)
        self.backbone = FeatureBackbone(self.backbone, strides)

    def image_of(self, batch: dict[str, Any]) -> Tensor:
        """Return the images of a batch.

        Raises:
            UserError: The batch holds cached activations.
        """
        if "image" not in batch:
            raise UserError(
                f"{type(self).__name__} needs maps at several depths, which cached activations do not hold: train "
                "without the cache"
            )
        return batch["image"]

    def target_of(self, batch: dict[str, Any], name: str) -> Any:
        """Return what a batch holds under a name that this task needs.

        Raises:
            UserError: It holds no such thing.
        """
        if name not in batch:
            raise UserError(
                f"{type(self).__name__} needs batches with {name!r}, but this one holds {', '.join(map(str, batch))}: "
                "choose a data module, or its task, that serves them"
            )
        return batch[name]

    def on_fit_start(self) -> None:
        """Refuse data of other classes, and an augmentation that would leave boxes and masks where they are."""
        from tl_lightning.callbacks.augmentation import BatchAugmentation
        from tl_lightning.callbacks.dense_augmentation import DenseAugmentation

        super().on_fit_start()
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise UserError(f"{type(self).__name__} has {self.num_classes} classes, but the data have {classes}")
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, BatchAugmentation) and not isinstance(callback, DenseAugmentation):
                raise UserError(
                    f"{type(callback).__name__} moves images but not their boxes and masks: take DenseAugmentation"
                )
