"""All augmentation of single images, as one picklable setting that is applied to whole batches."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tl_lightning.data.augment.color import jitter
from tl_lightning.data.augment.geometry import (
    Geometry,
    Padding,
    sample_flip,
    sample_resized_crop,
    sample_shift,
)
from tl_lightning.data.augment.randaugment import MAX_MAGNITUDE, DrawnOperations, draw_operations
from tl_lightning.data.augment.random import BatchPosition, generator, to_device, uniform
from tl_lightning.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """Random flips, crops, colours, RandAugment and erasing; each image of a batch draws its own parameters.

    Attributes:
        flip: Mirror left to right with probability one half.
        vertical_flip: Mirror top to bottom with probability one half.
        crop_padding: Shift by up to this many pixels in x and y (a crop of the padded image).
        resized_crop: Smallest and largest share of the area that a crop, shown in full size, covers.
        color: Strength of the change of brightness, contrast and saturation: one number or one for each;
            0.4 means factors of 0.6 to 1.4.
        randaugment: Number of RandAugment operations an image.
        magnitude: Their magnitude, 0 to 30, as in torchvision.
        erasing: Probability that a rectangle of 2 to 33 % of the image is painted in one random colour
            (Zhong et al. 2020, arXiv 1708.04896).
        padding: What geometric operations show beyond the border.
        seed: Together with the position in training it fixes all random numbers.
    """

    flip: bool = True
    vertical_flip: bool = False
    crop_padding: int = 0
    resized_crop: tuple[float, float] | None = None
    color: float | tuple[float, float, float] = 0.0
    randaugment: int = 0
    magnitude: int = 9
    erasing: float = 0.0
    padding: Padding = "reflection"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_geometry(self)
        _check_strengths(self)

    @property
    def changes_values(self) -> bool:
        """Whether an operation is on that needs values in [0, 1]."""
        return any(self._color_strengths()) or self.randaugment > 0 or self.erasing > 0

    @property
    def enabled(self) -> bool:
        """Whether any image is ever changed."""
        moves = self.flip or self.vertical_flip or self.crop_padding > 0 or self.resized_crop is not None
        return moves or self.changes_values

    def fingerprint(self) -> str:
        """Return a hash of the settings, the same in every process."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def __call__(self, images: Tensor, position: BatchPosition) -> Tensor:
        """Augment float images [B, C, H, W] (in [0, 1] where colours change); the input stays as it is."""
        operations = self._draw_operations(len(images), position)
        geometry = self.sample_geometry(images.shape, position, operations)
        if geometry is not None:
            images = geometry.apply_image(images)
        if any(self._color_strengths()):
            images = jitter(images, to_device(self._color_factors(len(images), position), images.device))
        if operations is not None:
            images = operations.apply_color(images)
        if self.erasing > 0:
            images = _erase(images, self._rand(12, len(images), position, "erasing"), self.erasing)
        return images

    def sample_geometry(
        self, shape: torch.Size, position: BatchPosition, operations: DrawnOperations | None = None
    ) -> Geometry | None:
        """Draw the geometric transform of a batch of ``shape``; None when no geometric operation is on."""
        height, width = shape[-2:]
        random = self._rand(8, shape[0], position, "geometry")
        matrices = []
        if self.resized_crop is not None:
            matrices.append(sample_resized_crop(random[4:8], self.resized_crop, height, width))
        if self.crop_padding > 0:
            matrices.append(sample_shift(random[2:4], self.crop_padding))
        if self.flip or self.vertical_flip:
            matrices.append(sample_flip(random[0:2], self.flip, self.vertical_flip))
        aligned = self.resized_crop is None and operations is None
        if operations is not None:
            matrices.append(operations.matrix(height, width))
        if not matrices:
            return None
        product = matrices[0]
        for matrix in matrices[1:]:
            product = product @ matrix
        return Geometry(product, self.padding, aligned)

    def _draw_operations(self, batch: int, position: BatchPosition) -> DrawnOperations | None:
        if self.randaugment == 0:
            return None
        random = self._rand(2 * self.randaugment, batch, position, "randaugment")
        return draw_operations(random.view(self.randaugment, 2, batch).transpose(0, 1), self.magnitude)

    def _color_strengths(self) -> tuple[float, ...]:
        return (self.color,) * 3 if isinstance(self.color, int | float) else tuple(self.color)

    def _color_factors(self, batch: int, position: BatchPosition) -> Tensor:
        random = self._rand(3, batch, position, "color")
        factors = [uniform(row, 1 - s, 1 + s) for row, s in zip(random, self._color_strengths(), strict=True)]
        return torch.stack(factors).clamp(min=0)

    def _rand(self, rows: int, batch: int, position: BatchPosition, name: str) -> Tensor:
        return torch.rand(rows, batch, generator=generator(self.seed, position, name))


def _erase(images: Tensor, random: Tensor, probability: float) -> Tensor:
    """Paint one rectangle an image; ``random`` [>= 5 + channels, B] in [0, 1)."""
    height, width = images.shape[-2:]
    area = uniform(random[1], 0.02, 0.33) * height * width
    ratio = torch.exp(uniform(random[2], math.log(0.3), math.log(3.3)))
    y = _span(torch.sqrt(area * ratio), random[3], height)
    x = _span(torch.sqrt(area / ratio), random[4], width)
    hit = (random[0] < probability)[:, None, None, None]
    box = to_device(hit & y[:, None, :, None] & x[:, None, None, :], images.device)
    paint = to_device(random[5 : 5 + images.shape[1]].T.contiguous(), images.device)
    return torch.where(box, paint.to(images.dtype)[:, :, None, None], images)


def _span(length: Tensor, place: Tensor, size: int) -> Tensor:
    """Return which of ``size`` pixels a piece of ``length`` [B] pixels covers that lies inside; bool [B, size]."""
    length = torch.round(length).clamp(1, size)[:, None]
    start = torch.floor(place[:, None] * (size - length + 1))
    pixel = torch.arange(size)
    return (pixel >= start) & (pixel < start + length)


def _check_geometry(settings: Augmentation) -> None:
    if settings.crop_padding < 0:
        raise UserError(f"crop_padding is a number of pixels and must be at least 0, not {settings.crop_padding}")
    if settings.padding not in ("reflection", "zeros"):
        raise UserError(f"padding must be 'reflection' or 'zeros', not {settings.padding!r}")
    if settings.resized_crop is None:
        return
    if len(settings.resized_crop) != 2 or not 0 < settings.resized_crop[0] <= settings.resized_crop[1] <= 1:
        raise UserError(
            f"resized_crop is the smallest and largest share of the area, such as (0.5, 1.0), "
            f"not {settings.resized_crop}"
        )
    if settings.crop_padding > 0:
        raise UserError("crop_padding and resized_crop are two ways to crop: give one of them")


def _check_strengths(settings: Augmentation) -> None:
    strengths = (settings.color,) * 3 if isinstance(settings.color, int | float) else tuple(settings.color)
    if len(strengths) != 3 or not all(0 <= strength < math.inf for strength in strengths):
        raise UserError(
            f"color is one strength, or (brightness, contrast, saturation), each at least 0, not {settings.color}"
        )
    if settings.randaugment < 0:
        raise UserError(f"randaugment is a number of operations and must be at least 0, not {settings.randaugment}")
    if not 0 <= settings.magnitude <= MAX_MAGNITUDE:
        raise UserError(f"magnitude must lie in 0..{MAX_MAGNITUDE}, not {settings.magnitude}")
    if not 0 <= settings.erasing <= 1:
        raise UserError(f"erasing is a probability and must lie in 0..1, not {settings.erasing}")
    if settings.seed < 0:
        raise UserError(f"seed must be at least 0, not {settings.seed}")
