"""Colour operations on float images [B, 3 or 1, H, W] in [0, 1], with one factor [B] an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, the weights that torchvision uses


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: factor 0 gives black, 1 the image."""
    return (images * _per_image(factor, images)).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of each image."""
    mean = grey(images).mean(dim=(-3, -2, -1), keepdim=True)
    return _blend(images, mean, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image; images of one channel stay as they are."""
    return images if images.shape[1] == 1 else _blend(images, grey(images), factor)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image (PIL's SMOOTH kernel); the outermost pixels stay as they are."""
    if min(images.shape[-2:]) <= 2:
        return images
    channels = images.shape[1]
    kernel = images.new_ones(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 5.0
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(images, kernel / 13.0, groups=channels)
    return _blend(images, smooth, factor)


def posterize(images: Tensor, bits: int) -> Tensor:
    """Keep the upper ``bits`` of the eight bits of every value."""
    step = 2 ** (8 - bits)
    return torch.floor(torch.round(images * 255) / step) * (step / 255)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert every value at or above ``threshold``."""
    return torch.where(images >= threshold, 1 - images, images)


def grey(images: Tensor) -> Tensor:
    """Return the luma [B, 1, H, W] of RGB images, or a single channel as it is."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, in this order, by ``factors`` [3, B]."""
    for operation, factor in zip((adjust_brightness, adjust_contrast, adjust_saturation), factors, strict=True):
        images = operation(images, factor)
    return images


def _blend(images: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    return (base + (images - base) * _per_image(factor, images)).clamp(0, 1)


def _per_image(factor: Tensor, images: Tensor) -> Tensor:
    return factor.to(images.dtype)[:, None, None, None]
