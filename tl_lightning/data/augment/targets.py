"""Boxes and masks follow the geometric transform of their images."""

from __future__ import annotations

import torch
from torch import Tensor

from tl_lightning.data.augment.geometry import Geometry, source_points
from tl_lightning.data.augment.random import to_device

VOID = 255
_SMALLEST_SIDE = 1.0  # pixels: what is left of a box below this shows nothing


def move_masks(masks: Tensor, geometry: Geometry) -> Tensor:
    """Transform masks int64 [B, H, W] as their images; every pixel takes the class of the nearest one it shows.

    Beyond the border lies what the geometry says: the mirrored mask, or void where the images are black.
    """
    height, width = masks.shape[-2:]
    x, y = source_points(to_device(geometry.matrix, masks.device), height, width)
    columns, rows = x.round().long(), y.round().long()
    index = _mirrored(rows, height) * width + _mirrored(columns, width)
    moved = masks.flatten(1).gather(1, index.flatten(1)).view_as(masks)
    if geometry.padding == "zeros":
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        moved = moved.masked_fill(~inside, VOID)
    return moved


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Reflect indices at the outer edges of the first and last pixel, as the images are."""
    index = index.remainder(2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def move_boxes(
    boxes: list[Tensor], geometry: Geometry, height: int, width: int, min_visible: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Transform the boxes of every image and cut them to it.

    A flip, shift, crop or change of size moves a box exactly; of a turned or sheared box, the upright box around it
    is taken.

    Args:
        boxes: Float [n, 4] (x1, y1, x2, y2 in pixels) of each image.
        geometry: The transform of the images.
        height: Of the images.
        width: Of the images.
        min_visible: Least share of a box's area that must lie within the image.

    Returns:
        The boxes that are left, and for each image which of its boxes they are, bool [n].
    """
    counts = [len(found) for found in boxes]
    joined = torch.cat(boxes)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    # the geometry maps points of the output to points of the input
    forward = to_device(torch.linalg.inv(geometry.matrix)[owner], joined.device)
    moved = _hulls(joined, forward, height, width)
    limit = moved.new_tensor([width, height, width, height])
    cut = torch.minimum(moved.clamp(min=0), limit)
    sides = cut[:, 2:] - cut[:, :2]
    whole = (moved[:, 2:] - moved[:, :2]).prod(1)
    kept = (sides >= _SMALLEST_SIDE).all(1) & (sides.clamp(min=0).prod(1) >= min_visible * whole)
    marks = list(kept.split(counts))
    return [found[mark] for found, mark in zip(cut.split(counts), marks, strict=True)], marks


def _hulls(boxes: Tensor, forward: Tensor, height: int, width: int) -> Tensor:
    """Return the upright box around every transformed box, [n, 4]."""
    centre = boxes.new_tensor([width / 2, height / 2])
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2) - centre
    points = corners @ forward[:, :2, :2].transpose(1, 2) + forward[:, None, :2, 2] + centre
    return torch.cat((points.amin(1), points.amax(1)), dim=1)
