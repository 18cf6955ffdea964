"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719) for whole batches, with torchvision's operations and ranges.

Each image draws its own operations. The geometric ones of an image are composed to one affine map and applied
first, in a single resampling, about the image centre; the colour operations follow in the order drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V2

from tl_lightning.data.augment import color
from tl_lightning.data.augment.geometry import identity
from tl_lightning.data.augment.random import to_device

MAX_MAGNITUDE = 30
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
COLOR = (
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
OPERATIONS = ("identity", *GEOMETRIC, *COLOR)


@dataclass(frozen=True)
class DrawnOperations:
    """The operations of every image of a batch.

    Attributes:
        operation: int64 [rounds, B], positions in ``OPERATIONS``.
        sign: float [rounds, B], -1 or 1: the direction of the operations that have one.
        strength: 0 to 1, the magnitude over its maximum.
    """

    operation: Tensor
    sign: Tensor
    strength: float

    def matrix(self, height: int, width: int) -> Tensor:
        """Compose the geometric operations to one map [B, 3, 3] (see ``Geometry.matrix``)."""
        matrix = identity(self.operation.shape[1])
        for operation, sign in zip(self.operation, self.sign, strict=True):
            matrix = matrix @ self._matrix_of_round(operation, sign * self.strength, height, width)
        return matrix

    def _matrix_of_round(self, operation: Tensor, strength: Tensor, height: int, width: int) -> Tensor:
        amount = {name: strength * (operation == OPERATIONS.index(name)) for name in GEOMETRIC}
        angle = amount["rotate"] * math.radians(30.0)
        matrix = identity(len(operation))
        matrix[:, 0, 0] = matrix[:, 1, 1] = torch.cos(angle)
        matrix[:, 0, 1] = amount["shear_x"] * 0.3 + torch.sin(angle)
        matrix[:, 1, 0] = amount["shear_y"] * 0.3 - torch.sin(angle)
        matrix[:, 0, 2] = amount["translate_x"] * width * 150 / 331
        matrix[:, 1, 2] = amount["translate_y"] * height * 150 / 331
        return matrix

    def apply_color(self, images: Tensor) -> Tensor:
        """Apply the colour operations to images [B, C, H, W] in [0, 1]."""
        images = images.clone()
        for operation, sign in zip(self.operation, self.sign, strict=True):
            for name in COLOR:
                chosen = (operation == OPERATIONS.index(name)).nonzero()[:, 0]
                if len(chosen):
                    factor = to_device(1 + 0.9 * self.strength * sign[chosen], images.device)
                    rows = to_device(chosen, images.device)
                    images[rows] = self._colored(name, images[rows], factor)
        return images

    def _colored(self, name: str, images: Tensor, factor: Tensor) -> Tensor:
        if name == "posterize":
            return color.posterize(images, 8 - round(4 * self.strength))
        if name == "solarize":
            return color.solarize(images, 1 - self.strength)
        if name == "autocontrast":
            return V2.autocontrast_image(images)
        if name == "equalize":
            return V2.equalize_image(images)
        return getattr(color, f"adjust_{name}")(images, factor)


def draw_operations(random: Tensor, magnitude: int) -> DrawnOperations:
    """Draw one operation a round and image from ``random`` [2, rounds, B] in [0, 1)."""
    operation = (random[0] * len(OPERATIONS)).long().clamp(max=len(OPERATIONS) - 1)
    sign = torch.where(random[1] < 0.5, -1.0, 1.0)
    return DrawnOperations(operation, sign, magnitude / MAX_MAGNITUDE)
