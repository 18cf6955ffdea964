"""Gaussian, shot, impulse and speckle noise on float images [N, C, S, S] in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor

from tl_lightning.data.corruptions.draws import Draws


def gaussian_noise(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Add normal noise of standard deviation ``scale``."""
    return images + scale * draws.normal(*images.shape[1:])


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Replace every value by a Poisson count of ``photons`` at full brightness."""
    return draws.poisson(images * photons) / photons


def impulse_noise(images: Tensor, draws: Draws, amount: float) -> Tensor:
    """Set a part of the values to 0 or 1 (salt and pepper)."""
    chance = draws.uniform(*images.shape[1:])
    salted = torch.where(chance > 1 - amount / 2, torch.ones_like(images), images)
    return torch.where(chance < amount / 2, torch.zeros_like(images), salted)


def speckle_noise(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Add normal noise in proportion to the value."""
    return images + images * scale * draws.normal(*images.shape[1:])
