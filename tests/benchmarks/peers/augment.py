"""The random augmentation that all contenders of the benchmark use."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from tl_lightning.data.augment import Augmentation
from tl_lightning.data.augment.random import BatchPosition


class FlipAndShift:
    """The augmentation of the benchmark, a batch at a time, for peers: mirror and shift by up to 4 pixels."""

    options: ClassVar[dict[str, Any]] = {"flip": True, "crop_padding": 4}

    def __init__(self) -> None:
        self.augmentation, self.batches = Augmentation(**self.options), 0

    def __call__(self, images: Tensor) -> Tensor:
        self.batches += 1
        return self.augmentation(images, BatchPosition(0, self.batches))
