"""Geometric augmentation: one affine map an image, sampled once and applied in a single resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tl_lightning.data.augment.random import to_device, uniform

Padding = Literal["reflection", "zeros"]


@dataclass(frozen=True)
class Geometry:
    """The sampled geometric transform of a batch, to be applied to everything that lies in the image plane.

    Attributes:
        matrix: [B, 3, 3] on the CPU. Maps a point of the output to the point of the input that it shows, in
            pixels measured from the image centre, (x, y, 1).
        padding: What lies beyond the border: the mirrored image, or zeros (black).
        aligned: Every map is a flip and a shift by whole pixels; it is then an exact copy of pixels.
    """

    matrix: Tensor
    padding: Padding = "reflection"
    aligned: bool = False

    def apply_image(self, images: Tensor) -> Tensor:
        """Transform float images [B, C, H, W]; the size stays, values are interpolated bilinearly."""
        matrix = to_device(self.matrix, images.device)
        x, y = source_points(matrix, *images.shape[-2:])
        if self.aligned:
            return _copy_pixels(images, x[:, 0, :], y[:, :, 0], self.padding)
        return _interpolate(images, x, y, self.padding)


def source_points(matrix: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the input pixel coordinates, x and y, each [B, height, width], that every output pixel shows."""
    x = torch.arange(width, device=matrix.device, dtype=matrix.dtype) - (width - 1) / 2
    y = torch.arange(height, device=matrix.device, dtype=matrix.dtype)[:, None] - (height - 1) / 2
    rows = matrix[:, :2, :, None, None]
    points = rows[:, :, 0] * x + rows[:, :, 1] * y + rows[:, :, 2]
    return points[:, 0] + (width - 1) / 2, points[:, 1] + (height - 1) / 2


def _copy_pixels(images: Tensor, x: Tensor, y: Tensor, padding: Padding) -> Tensor:
    """Gather whole pixels: column ``x`` [B, W] and row ``y`` [B, H]; nine times as fast as interpolation."""
    height, width = images.shape[-2:]
    columns, rows = x.round().long(), y.round().long()
    index = _mirror(rows, height)[:, :, None] * width + _mirror(columns, width)[:, None, :]
    flat = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    result = images.flatten(2).gather(2, flat).view_as(images)
    if padding == "zeros":
        inside = _inside(rows, height)[:, None, :, None] & _inside(columns, width)[:, None, None, :]
        result = result * inside
    return result


def _mirror(index: Tensor, size: int) -> Tensor:
    """Reflect indices at the outer edges of the first and last pixel, as ``grid_sample`` does."""
    index = index.remainder(2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def _inside(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _interpolate(images: Tensor, x: Tensor, y: Tensor, padding: Padding) -> Tensor:
    height, width = images.shape[-2:]
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    result = F.grid_sample(images.float(), grid, padding_mode=padding, align_corners=False)
    return result.to(images.dtype)


def identity(batch: int) -> Tensor:
    """Return the map [batch, 3, 3] that changes nothing."""
    return torch.eye(3).repeat(batch, 1, 1)


def sample_flip(random: Tensor, horizontal: bool, vertical: bool) -> Tensor:
    """Flip each image with probability one half; ``random`` is [2, B] in [0, 1)."""
    matrix = identity(random.shape[1])
    if horizontal:
        matrix[:, 0, 0] = torch.where(random[0] < 0.5, -1.0, 1.0)
    if vertical:
        matrix[:, 1, 1] = torch.where(random[1] < 0.5, -1.0, 1.0)
    return matrix


def sample_shift(random: Tensor, pixels: int) -> Tensor:
    """Shift each image by -pixels..pixels: a crop of the padded image; ``random`` is [2, B] in [0, 1)."""
    matrix = identity(random.shape[1])
    matrix[:, :2, 2] = (torch.floor(random * (2 * pixels + 1)) - pixels).clamp(max=pixels).T
    return matrix


def sample_resized_crop(random: Tensor, scale: tuple[float, float], height: int, width: int) -> Tensor:
    """Show a random part of each image in full size; ``random`` is [4, B] in [0, 1).

    As ``torchvision.transforms.RandomResizedCrop`` (area in ``scale``, aspect ratio in 3/4..4/3), but a side that
    would pass the image is cut to it instead of drawn again.
    """
    area = uniform(random[0], *scale)
    ratio = torch.exp(uniform(random[1], math.log(3 / 4), math.log(4 / 3)))
    side = torch.tensor([width, height], dtype=torch.float32)[:, None]
    part = torch.sqrt(area * height * width * torch.stack((ratio, 1 / ratio))).minimum(side)
    corner = random[2:4] * (side - part)
    matrix = identity(random.shape[1])
    matrix[:, 0, 0], matrix[:, 1, 1] = part / side
    matrix[:, :2, 2] = (corner + (part - side) / 2).T
    return matrix
