"""Fog, brightness, contrast and saturation on float images [N, C, S, S] in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor

from tl_lightning.data.corruptions.draws import Draws


def fog(images: Tensor, draws: Draws, amount: float, decay: float) -> Tensor:
    """Add a plasma fractal and scale back to the image's own brightest value."""
    brightest = images.amax((1, 2, 3), keepdim=True)
    size = images.shape[-1]
    haze = plasma_fractal(draws, size, decay)[:, None, :size, :size]
    return (images + amount * haze) * brightest / (brightest + amount)


def brightness(images: Tensor, draws: Draws, amount: float) -> Tensor:
    """Add ``amount`` to the value channel of HSV."""
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-6), brighter.expand_as(images))


def contrast(images: Tensor, draws: Draws, factor: float) -> Tensor:
    """Shrink every channel's distance from its mean over the image."""
    levels = (images * 255).round().long()  # a sum of integers does not depend on its order
    mean = levels.sum((2, 3), keepdim=True).to(images.dtype) / (255 * images.shape[2] * images.shape[3])
    return (images - mean) * factor + mean


def saturate(images: Tensor, draws: Draws, factor: float, offset: float) -> Tensor:
    """Scale and shift the saturation channel of HSV; grey pixels, which have no hue, stay."""
    value = images.amax(1, keepdim=True)
    saturation = (value - images.amin(1, keepdim=True)) / value.clamp(min=1e-6)
    wanted = (saturation * factor + offset).clamp(0, 1)
    ratio = torch.where(saturation > 0, wanted / saturation.clamp(min=1e-6), torch.ones_like(saturation))
    return value - (value - images) * ratio


def plasma_fractal(draws: Draws, size: int, decay: float) -> Tensor:
    """Return height maps [N, M, M] in 0..1 by the diamond-square algorithm; M is ``size`` or the next power of two."""
    side = 1 << (size - 1).bit_length()
    wobble = draws.uniform(side, side, low=-1, high=1)
    heights = torch.zeros_like(wobble)
    step, strength = side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        below = corners + corners.roll(-1, 1)
        square = (below + below.roll(-1, 2)) / 4
        heights[:, half::step, half::step] = square + strength**2 * wobble[:, half::step, half::step]
        centres = heights[:, half::step, half::step]
        upper = (centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)) / 4
        heights[:, ::step, half::step] = upper + strength**2 * wobble[:, ::step, half::step]
        left = (centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)) / 4
        heights[:, half::step, ::step] = left + strength**2 * wobble[:, half::step, ::step]
        step, strength = half, strength / decay
    heights = heights - heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True).clamp(min=1e-6)
