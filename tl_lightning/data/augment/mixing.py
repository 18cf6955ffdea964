"""MixUp (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tl_lightning.data.augment.random import BatchPosition, generator, to_device
from tl_lightning.errors import UserError

SMALLEST_ALPHA = 1e-6


@dataclass(frozen=True)
class Mixing:
    """Mix every image with another one of the batch; every image has a share of its own.

    Attributes:
        mixup: alpha of the Beta distribution of the share in MixUp; 0 switches it off.
        cutmix: alpha of the Beta distribution of the share in CutMix; 0 switches it off. When both are on,
            each image takes one of them with probability one half.
        seed: Together with the position in training it fixes all random numbers.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if not (0 <= alpha < math.inf):
                raise UserError(f"{name} is the alpha of a Beta distribution and must be at least 0, not {alpha}")

    @property
    def enabled(self) -> bool:
        """Whether any image is ever mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: Tensor, labels: Tensor, position: BatchPosition) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: Float [B, C, H, W].
            labels: Float [B, classes], one-hot or soft.
            position: The batch's place in training.

        Returns:
            The mixed images and labels; the label shares are exactly the shares of the pixels.
        """
        random = torch.rand(4, len(images), generator=generator(self.seed, position, "mixing"))
        partner = torch.randperm(len(images), generator=generator(self.seed, position, "partner"))
        keep = self._kept_pixels(random, *images.shape[-2:])
        share = to_device(keep.mean(dim=(1, 2, 3)), images.device).to(labels.dtype)[:, None]
        keep = to_device(keep, images.device).to(images.dtype)
        partner = to_device(partner, images.device)
        return torch.lerp(images[partner], images, keep), torch.lerp(labels[partner], labels, share)

    def _kept_pixels(self, random: Tensor, height: int, width: int) -> Tensor:
        """Return the weight of the own image in every pixel, [B, 1, H, W] or, in MixUp alone, [B, 1, 1, 1]."""
        blend = symmetric_beta(random[0], self.mixup)[:, None, None, None]
        if self.cutmix == 0:
            return blend
        box = kept_outside_box(symmetric_beta(random[0], self.cutmix), random[2:4], height, width)
        if self.mixup == 0:
            return box
        return torch.where((random[1] < 0.5)[:, None, None, None], blend, box)


def symmetric_beta(random: Tensor, alpha: float) -> Tensor:
    """Turn numbers of [0, 1) into draws of Beta(alpha, alpha); alpha 0 gives 1, a tiny one 0 or 1."""
    from scipy.special import betaincinv  # only here: the import takes a third of a second

    if alpha == 0:
        return torch.ones_like(random)
    alpha = max(alpha, SMALLEST_ALPHA)  # the inverse is nan for less
    draws = betaincinv(alpha, alpha, random.double().numpy())
    return torch.from_numpy(draws).float()


def kept_outside_box(share: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Return 1 outside and 0 inside a box of area ``1 - share`` [B] around ``centre`` [2, B] in [0, 1).

    The box is cut at the image border, as in the paper's code, so that more than ``share`` may be kept.
    """
    side = torch.sqrt(1 - share)
    y = box_range(centre[0], side, height)
    x = box_range(centre[1], side, width)
    return 1.0 - (y[:, None, :, None] & x[:, None, None, :]).float()


def box_range(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """Return which of ``size`` pixels lie within ``side`` (a fraction, [B]) around ``centre``; bool [B, size]."""
    length = torch.round(side * size)
    start = torch.floor(centre * size) - torch.floor(length / 2)
    pixel = torch.arange(size)
    return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
