"""Whether attribution maps tell the truth: agreement of maps, the grid pointing game, ROAD."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirst, ROADMostRelevantFirst
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.stats import rankdata
from torch import nn

from tl_lightning.analysis.checks import Array, as_classes, as_features, as_numpy, as_paired_features
from tl_lightning.analysis.untouched import isolated_rng, untouched
from tl_lightning.errors import UserError


def rank_correlation(first: Array, second: Array, *, absolute: bool = False) -> npt.NDArray[np.float64]:
    """Return the Spearman rank correlation of two maps of each image.

    Adebayo et al. 2018, "Sanity checks for saliency maps": a map that stays the same when the weights are randomised
    explains the image and not the model.

    Args:
        first: Maps [N, ...].
        second: Maps of the same images, of the same shape.
        absolute: Compare magnitudes, for signed gradients.

    Returns:
        [N] numbers in [-1, 1]; 0 where either map is constant, as it orders no pixels.
    """
    if as_numpy(first).shape != as_numpy(second).shape:
        raise UserError(f"maps differ in shape: {list(as_numpy(first).shape)} and {list(as_numpy(second).shape)}")
    pair = as_paired_features(first, second)
    ranks = [rankdata(np.abs(maps) if absolute else maps, axis=1) for maps in pair]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), size, out=np.zeros(len(a)), where=size > 0)


@dataclass(frozen=True)
class PointingGrids:
    """Grids of 2 x 2 images, of which one cell shows the target class.

    Attributes:
        images: [G, C, 2 H, 2 W].
        classes: int64 [G], the class to explain.
        cells: int64 [G], where it is: 0 and 1 in the upper row, 2 and 3 in the lower one.
        members: int64 [G, 4], the image in each cell.
    """

    images: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    cells: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]


def pointing_grids(images: Array, labels: Array, count: int, *, seed: int = 0) -> PointingGrids:
    """Build the grids of the grid pointing game from images of different classes.

    Boehle et al. 2021, "Convolutional dynamic alignment networks for interpretable classifications". Give images that
    the model classifies rightly and with confidence, as the paper does: an attribution cannot point at what the model
    does not see. Here each grid is asked for one class: the target cell goes round the four places, so that a map that
    always prefers one place scores chance. With fewer than four classes the other three cells share classes, but none
    shows the target's. A grid holds an image twice only where its class has too few.

    Args:
        images: Images [N, C, H, W], half as large as the model may take.
        labels: Classes [N], at least two different ones.
        count: Number of grids.
        seed: Fixes the choice.
    """
    pool = as_numpy(images).astype(np.float32)
    if pool.ndim != 4 or count < 1:
        raise UserError(f"images [N, C, H, W] and at least 1 grid are needed, not {list(pool.shape)} and {count}")
    y = as_classes(labels, len(pool))
    if len(np.unique(y)) < 2:
        raise UserError("the grid pointing game needs images of at least two classes")
    generator = np.random.default_rng(seed)
    cells = np.arange(count) % 4
    members = np.stack([_members(y, int(cell), generator) for cell in cells])
    grids = pool[members].reshape(count, 2, 2, *pool.shape[1:]).transpose(0, 3, 1, 4, 2, 5)
    height, width = pool.shape[2] * 2, pool.shape[3] * 2
    targets = y[members[np.arange(count), cells]]
    return PointingGrids(grids.reshape(count, pool.shape[1], height, width), targets, cells, members)


def _members(y: npt.NDArray[np.int64], cell: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    target, *others = generator.permutation(np.unique(y))
    classes = [others[i % len(others)] for i in range(3)]
    classes.insert(cell, target)
    members: list[int] = []
    for c in classes:
        images = np.flatnonzero(y == c)
        unused = np.setdiff1d(images, members)
        members.append(int(generator.choice(unused if len(unused) else images)))
    return np.array(members)


def pointing_share(maps: Array, cells: Array) -> npt.NDArray[np.float64]:
    """Return the share of positive attribution that lies in the right cell of each grid.

    Args:
        maps: Attribution maps [G, 2 H, 2 W] of grids, for the class of the grid; negative values count as 0.
        cells: The right cell [G], 0 to 3 as in ``PointingGrids``.

    Returns:
        [G] numbers in [0, 1]; chance is 0.25, and a map without positive values counts as chance.
    """
    values = as_numpy(maps)
    if values.ndim != 3 or values.shape[1] % 2 or values.shape[2] % 2:
        raise UserError(f"maps of 2 x 2 grids must be [G, 2 H, 2 W], not {list(values.shape)}")
    right = as_classes(cells, len(values), "cells")
    if right.min() < 0 or right.max() > 3:
        raise UserError("cells must lie in 0 .. 3")
    groups, height, width = values.shape
    positive = as_features(values, "maps").clip(min=0).reshape(groups, 2, height // 2, 2, width // 2)
    sums = positive.sum(axis=(2, 4)).reshape(groups, 4)
    total = sums.sum(1)
    return np.divide(sums[np.arange(groups), right], total, out=np.full(groups, 0.25), where=total > 0)


@dataclass(frozen=True)
class RoadScores:
    """Change of the class probability when pixels are replaced, for each image.

    Attributes:
        removed: [P], the share of pixels replaced.
        most_relevant: [P, N], the most relevant pixels first; a faithful map makes it fall fast.
        least_relevant: [P, N], the least relevant pixels first; a faithful map keeps it near 0.
    """

    removed: npt.NDArray[np.float64]
    most_relevant: npt.NDArray[np.float64]
    least_relevant: npt.NDArray[np.float64]

    @property
    def combined(self) -> npt.NDArray[np.float64]:
        """[N] numbers in [-1, 1]: half the mean gap, 0 for a map that ranks pixels at random; higher is better."""
        return (self.least_relevant - self.most_relevant).mean(0) / 2


def road(
    model: nn.Module,
    images: Array,
    maps: Array,
    classes: Array,
    *,
    removed: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    seed: int = 0,
) -> RoadScores:
    """Return ROAD, remove and debias, computed by the grad-cam package.

    Rong et al. 2022, "A consistent and efficient evaluation strategy for attribution methods": pixels are replaced by
    noisy linear interpolation from those that stay. The maps are turned into ranks first, with ties broken at random:
    Grad-CAM maps are zero over large parts, and a threshold there would remove far more pixels than asked for.

    Args:
        model: Maps images to class scores [N, C]; left as it was.
        images: Images [N, 3, H, W] as the model's forward takes them.
        maps: Attribution maps [N, H, W].
        classes: The explained class of each image [N].
        removed: Shares of pixels to replace, in (0, 1).
        seed: Fixes the noise and the order of ties.
    """
    shares = np.asarray(removed, dtype=np.float64)
    if shares.ndim != 1 or len(shares) == 0 or shares.min() <= 0 or shares.max() >= 1:
        raise UserError(f"removed must be shares in (0, 1), not {list(removed)}")
    pixels = torch.from_numpy(as_numpy(images).astype(np.float32))
    ranks = _distinct_ranks(maps, seed)
    if ranks.shape != (len(pixels), *pixels.shape[2:]):
        raise UserError(f"maps {list(ranks.shape)} do not fit images {list(pixels.shape)}")
    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in as_classes(classes, len(pixels), "classes")]
    state = next(model.parameters(), pixels)
    pixels = pixels.to(state)
    scores = []
    with untouched(model), isolated_rng(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package calls NumPy on tensors, 100 times a map
        for share in shares:
            most = ROADMostRelevantFirst(100 * (1 - share))(pixels, ranks, targets, model)
            least = ROADLeastRelevantFirst(100 * (1 - share))(pixels, ranks, targets, model)
            scores.append((most, least))
    most_relevant, least_relevant = np.asarray(scores, dtype=np.float64).transpose(1, 0, 2)
    return RoadScores(shares, most_relevant, least_relevant)


def _distinct_ranks(maps: Array, seed: int) -> npt.NDArray[np.float64]:
    """Return the maps as ranks spread evenly over [0, 1], no two alike within a map."""
    values = as_numpy(maps)
    flat = as_features(values, "maps")
    ties = np.random.default_rng(seed).random(flat.shape)
    order = np.lexsort((ties, flat), axis=1)
    ranks = np.empty_like(flat)
    np.put_along_axis(ranks, order, np.linspace(0, 1, flat.shape[1])[None].repeat(len(flat), 0), axis=1)
    return ranks.reshape(values.shape)
