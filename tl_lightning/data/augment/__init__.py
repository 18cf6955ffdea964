"""Batched augmentation on the device that trains: pure functions of a tensor and sampled parameters."""

from tl_lightning.data.augment.geometry import Geometry
from tl_lightning.data.augment.mixing import Mixing
from tl_lightning.data.augment.pipeline import Augmentation

__all__ = ["Augmentation", "Geometry", "Mixing"]
