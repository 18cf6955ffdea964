"""JPEG compression, pixelation and elastic deformation on float images [N, C, S, S] in 0..1."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tl_lightning.data.corruptions.blur import smooth
from tl_lightning.data.corruptions.draws import Draws

# Annex K of ITU-T T.81, the tables that libjpeg scales by quality.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8),) * 4,
)


def pixelate(images: Tensor, draws: Draws, factor: float) -> Tensor:
    """Shrink to ``factor`` of the size by averaging areas and blow up again to blocks."""
    size = images.shape[-1]
    shrink = _area_weights(size, max(1, int(size * factor)))
    block = ((torch.arange(size) + 0.5) * len(shrink) / size).long()  # the block that a pixel's centre lies in
    matrix = shrink[block]
    return _along_band(_along_band(images, matrix).transpose(2, 3), matrix).transpose(2, 3)


def elastic_transform(images: Tensor, draws: Draws, displacement: float, smoothness: float) -> Tensor:
    """Move pixels by a smooth random field; both constants are parts of the image size."""
    size = images.shape[-1]
    sigma = smoothness * size
    field = smooth(draws.normal(2, size, size), sigma)
    field = field * (2 * math.sqrt(math.pi) * sigma)  # smoothing divides the deviation of white noise by this
    shift = field.permute(0, 2, 3, 1) * (2 * displacement)  # grid_sample's image is 2 wide
    centre = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * 2 / size - 1
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1)
    return F.grid_sample(images, grid + shift, padding_mode="reflection", align_corners=False)


def jpeg_compression(images: Tensor, draws: Draws, quality: float) -> Tensor:
    """Quantise the 8 x 8 DCT as a JPEG of that quality does (colour at half resolution)."""
    size = images.shape[-1]
    pad = -size % 16
    levels = F.pad(images * 255, (0, pad, 0, pad), mode="replicate").round()
    if images.shape[1] == 1:
        return _quantise(levels - 128, _table(_LUMA, quality, levels))[..., :size, :size].add(128) / 255
    red, green, blue = levels.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([(blue - luma) * 0.564334, (red - luma) * 0.713267], 1)
    luma = _quantise(luma[:, None] - 128, _table(_LUMA, quality, levels))[:, 0] + 128
    chroma = _quantise(F.avg_pool2d(chroma, 2), _table(_CHROMA, quality, levels))
    to_blue, to_red = F.interpolate(chroma, scale_factor=2, mode="bilinear").unbind(1)
    rgb = [luma + 1.402 * to_red, luma - 0.344136 * to_blue - 0.714136 * to_red, luma + 1.772 * to_blue]
    return torch.stack(rgb, 1)[..., :size, :size] / 255


def _table(base: tuple[tuple[int, ...], ...], quality: float, like: Tensor) -> Tensor:
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return torch.floor((torch.tensor(base, dtype=like.dtype, device=like.device) * scale + 50) / 100).clamp(1, 255)


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """Round the DCT of every 8 x 8 block of [N, C, H, W] to multiples of ``table``."""
    count, channels, height, width = planes.shape
    blocks = planes.view(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    frequency = torch.arange(8, dtype=planes.dtype, device=planes.device)
    dct = torch.cos((2 * frequency[None] + 1) * frequency[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    coefficients = _along_last(_along_last(blocks, dct).transpose(-1, -2), dct).transpose(-1, -2)
    coefficients = (coefficients / table).round() * table
    blocks = _along_last(_along_last(coefficients, dct.T).transpose(-1, -2), dct.T).transpose(-1, -2)
    return blocks.transpose(3, 4).reshape(count, channels, height, width)


def _along_last(blocks: Tensor, matrix: Tensor) -> Tensor:
    """Apply an 8 x 8 matrix along the last axis as a fixed sum, whose rounding does not depend on the batch."""
    total = blocks[..., 0:1] * matrix[:, 0]
    for tap in range(1, 8):
        total = total + blocks[..., tap : tap + 1] * matrix[:, tap]
    return total


def _area_weights(size: int, small: int) -> Tensor:
    """Return [small, size], the part of every large pixel that lies in each small one, rows summing to 1."""
    edges = torch.arange(small + 1, dtype=torch.float64) * size / small
    pixels = torch.arange(size, dtype=torch.float64)
    right = torch.minimum(edges[1:, None], pixels[None] + 1)
    overlap = (right - torch.maximum(edges[:-1, None], pixels[None])).clamp(min=0)
    return overlap / overlap.sum(1, keepdim=True)


def _along_band(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply [size, size] along the last axis, a diagonal at a time, as a fixed sum."""
    size = images.shape[-1]
    result = torch.zeros_like(images)
    for offset in range(1 - size, size):
        diagonal = matrix.diagonal(offset)
        if not diagonal.any():
            continue
        rows = slice(max(0, -offset), max(0, -offset) + len(diagonal))
        columns = slice(max(0, offset), max(0, offset) + len(diagonal))
        result[..., rows] += images[..., columns] * diagonal.to(images)
    return result
