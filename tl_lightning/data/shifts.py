"""Domain shifts of uint8 images: fifteen corruptions after Hendrycks and Dietterich 2019, inversion, block shuffling.

An image's result depends on the image, its index and the seed alone: not on the batch that it comes in.
Where this differs from the published code: constants are scaled to the image size (``corruptions/constants.py``);
results are rounded, not cut off; saturation and elastic deformation rise with the severity; JPEG is its quantisation
in tensor code; severities of one image share one draw.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tl_lightning.data.corruptions import blur, digital, light, noise
from tl_lightning.data.corruptions.constants import constants
from tl_lightning.data.corruptions.draws import Draws
from tl_lightning.errors import UserError, unknown_name

CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "defocus_blur": blur.defocus_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "fog": light.fog,
    "brightness": light.brightness,
    "contrast": light.contrast,
    "saturate": light.saturate,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "elastic_transform": digital.elastic_transform,
}
SHIFTS: tuple[str, ...] = (*CORRUPTIONS, "invert", "block_shuffle", "none")

_SHUFFLE_GRIDS = (2, 3, 4, 6, 8)  # blocks a side, by severity
_CHUNK = 64


def check_shift(name: str, severity: int) -> None:
    """Check the name and severity of a shift.

    Raises:
        UserError: There is no such shift (the nearest are suggested), or the severity is not 1 to 5.
    """
    if name not in SHIFTS:
        raise unknown_name("corruption", name, SHIFTS)
    if severity not in (1, 2, 3, 4, 5):
        raise UserError(f"severity must be 1, 2, 3, 4 or 5, not {severity}")


def corrupt(images: Tensor, name: str, severity: int = 3, seed: int = 0, indices: Tensor | None = None) -> Tensor:
    """Return a shifted copy of a batch.

    Args:
        images: uint8 [N, C, S, S], C = 1 or 3.
        name: One of ``SHIFTS``; ``invert`` and ``none`` have no severities.
        severity: 1 (weak) to 5 (strong).
        seed: Same seed, same result.
        indices: int64 [N], the position of every image in its data set; by default 0..N-1.

    Returns:
        uint8 of the same shape.

    Raises:
        UserError: Unknown name or severity.
    """
    check_shift(name, severity)
    if indices is None:
        indices = torch.arange(len(images))
    parts = [
        _corrupt_chunk(images[start : start + _CHUNK], name, severity, seed, indices[start : start + _CHUNK])
        for start in range(0, len(images), _CHUNK)
    ]
    return torch.cat(parts) if parts else images.clone()


def _corrupt_chunk(images: Tensor, name: str, severity: int, seed: int, indices: Tensor) -> Tensor:
    if name == "none":
        return images.clone()
    if name == "invert":
        return 255 - images
    draws = Draws(seed, indices, images.device)
    if name == "block_shuffle":
        return block_shuffle(images, draws, _SHUFFLE_GRIDS[severity - 1])
    shifted = CORRUPTIONS[name](images.float() / 255, draws, *constants(name, severity, images.shape[-1]))
    return (shifted * 255).round().clamp(0, 255).to(torch.uint8)


def block_shuffle(images: Tensor, draws: Draws, grid: int) -> Tensor:
    """Permute the ``grid`` x ``grid`` blocks of every image; rows and columns that do not divide evenly stay."""
    count, channels, size, _ = images.shape
    grid = min(grid, size)
    side = size // grid
    used = side * grid
    blocks = images[..., :used, :used].reshape(count, channels, grid, side, grid, side)
    blocks = blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, grid * grid, channels, side, side)
    order = draws.permutation(grid * grid)
    blocks = blocks[torch.arange(count, device=images.device)[:, None], order]
    blocks = blocks.view(count, grid, grid, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    shuffled = images.clone()
    shuffled[..., :used, :used] = blocks.reshape(count, channels, used, used)
    return shuffled
