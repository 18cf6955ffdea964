"""Gaussian, defocus, motion and zoom blur on float images [N, C, S, S] in 0..1.

Convolutions are sums of shifted images: a matrix library may order its sums by the batch size, and an image's result
must not depend on its batch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tl_lightning.data.corruptions.draws import Draws

_ZOOMS = 11


def gaussian_blur(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Blur by a Gaussian of ``sigma`` pixels."""
    return smooth(images, sigma)


def defocus_blur(images: Tensor, draws: Draws, radius: float, alias: float) -> Tensor:
    """Blur by a disk of ``radius`` pixels whose edge is smoothed by a Gaussian of ``alias`` pixels."""
    reach = math.ceil(radius) + 2
    offsets = np.arange(-reach, reach + 1)
    distance = np.hypot(offsets[:, None], offsets[None])
    disk = np.clip(radius + 0.5 - distance, 0, 1)
    edge = np.exp(-0.5 * (np.arange(-1, 2) / alias) ** 2)
    for axis in (0, 1):
        disk = np.apply_along_axis(np.convolve, axis, disk, edge / edge.sum(), mode="same")
    return _convolve(images, disk / disk.sum())


def motion_blur(images: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """Blur along a line at an angle of -45 to 45 degrees, drawn for each image, with one-sided Gaussian weights."""
    count, channels, height, width = images.shape
    taps = 2 * round(radius) + 1
    weights = np.exp(-0.5 * (np.arange(taps) / sigma) ** 2)
    weights /= weights.sum()
    angle = draws.uniform(1, low=-math.pi / 4, high=math.pi / 4)
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    flat = images.flatten(2)
    blurred = torch.zeros_like(flat)
    for tap, weight in enumerate(weights):
        down, right = (tap * angle.sin()).round().long(), (tap * angle.cos()).round().long()
        y, x = (rows + down).clamp(0, height - 1), (columns + right).clamp(0, width - 1)
        picks = (y[:, :, None] * width + x[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
        blurred += float(weight) * flat.gather(2, picks)
    return blurred.view(count, channels, height, width)


def zoom_blur(images: Tensor, draws: Draws, largest: float) -> Tensor:
    """Average the image with its centre zoomed by factors from 1 to ``largest``."""
    total = images.clone()
    for zoom in np.linspace(1, largest, _ZOOMS):
        theta = torch.tensor([[1 / zoom, 0, 0], [0, 1 / zoom, 0]], dtype=images.dtype, device=images.device)
        grid = F.affine_grid(theta[None], [1, *images.shape[1:]], align_corners=False)
        total += F.grid_sample(images, grid.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False)
    return total / (_ZOOMS + 1)


def smooth(images: Tensor, sigma: float) -> Tensor:
    """Return images [N, C, S, S] blurred by a Gaussian (cut at 3 sigma, edges repeated)."""
    offsets = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    return _convolve(_convolve(images, weights[:, None]), weights[None])


def _convolve(images: Tensor, kernel: NDArray[np.float64]) -> Tensor:
    """Convolve every channel with a kernel of odd sides, edges repeated."""
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = F.pad(images, (left, left, up, up), mode="replicate")
    height, width = images.shape[-2:]
    result = torch.zeros_like(images)
    for (row, column), weight in np.ndenumerate(kernel):
        if weight > 1e-8:
            result += float(weight) * padded[..., row : row + height, column : column + width]
    return result
