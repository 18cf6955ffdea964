"""How far images lie from those that a network was trained on, without having the latter.

BatchNorm keeps the mean and variance that each of its channels had over the training images. They are a Gaussian of
the source's features at every such layer: exact, as old as the last epoch of training, and part of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl_lightning.activations.extraction import device_of
from tl_lightning.errors import UserError


def diagonal_frechet_distance(
    mean_a: npt.ArrayLike, variance_a: npt.ArrayLike, mean_b: npt.ArrayLike, variance_b: npt.ArrayLike
) -> float:
    """Return the squared Frechet distance between two Gaussians of independent coordinates.

    ``|m_a - m_b|^2 + |s_a - s_b|^2`` with the standard deviations s: Dowson and Landau 1982 for diagonal covariances.

    Args:
        mean_a: Mean [d] of the one.
        variance_a: Variances [d], none below 0.
        mean_b: Mean [d] of the other.
        variance_b: Its variances [d].
    """
    means = np.asarray(mean_a, dtype=np.float64) - np.asarray(mean_b, dtype=np.float64)
    deviations = np.sqrt(np.asarray(variance_a, dtype=np.float64)) - np.sqrt(np.asarray(variance_b, dtype=np.float64))
    return float((means**2).sum() + (deviations**2).sum())


def source_distances(
    model: nn.Module, images: Tensor | Iterable[Tensor], normalise: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Return the Frechet distance of images to the source of a network, at each of its BatchNorm layers.

    A layer's squared distance between the Gaussian of its running statistics and that of the images, both with
    independent channels and all positions pooled as BatchNorm does it, divided by the total variance of the source:
    a number without unit, 0 for the source itself, comparable between layers. Source and images differ in resolution,
    too, where the network was trained at another one; that part is the same for all images of one size.

    Args:
        model: The network with the statistics of its source; run in evaluation mode, and left as it is.
        images: Float [N, C, H, W], or batches of them; at least two in all.
        normalise: Applied to every batch first.

    Returns:
        For every BatchNorm layer, by its path and in the order of the network, a number from 0.

    Raises:
        UserError: No layer of the network keeps running statistics, or there are too few images.
    """
    model = copy.deepcopy(model).eval()
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }
    if not layers:
        raise UserError("a distance to the source needs BatchNorm layers with running statistics; the network has none")
    moments = {name: Moments() for name in layers}
    hooks = [layer.register_forward_pre_hook(moments[name].hook) for name, layer in layers.items()]
    device = device_of(model)
    with torch.no_grad():
        for batch in images.split(64) if isinstance(images, Tensor) else images:
            batch = batch.to(device)
            model(normalise(batch) if normalise is not None else batch)
    for hook in hooks:
        hook.remove()
    return {name: _relative(layer, moments[name]) for name, layer in layers.items() if moments[name].count}


def _relative(layer: _BatchNorm, moments: Moments) -> float:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, variance = layer.running_mean.double().cpu().numpy(), layer.running_var.double().cpu().numpy()
    distance = diagonal_frechet_distance(mean, variance, *moments.gaussian())
    return distance / max(float(variance.sum()), np.finfo(np.float64).tiny)


class Moments:
    """Mean and variance of each channel over all that passes a layer."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def hook(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Count in what enters the layer, [B, C] or [B, C, ...]."""
        values = inputs[0].detach().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self._sum = self._sum + values.sum(1).cpu()
        self._squares = self._squares + (values**2).sum(1).cpu()

    def gaussian(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return mean [C] and variance [C]."""
        if self.count < 2:
            raise UserError("a distance to the source needs at least two images")
        mean = torch.as_tensor(self._sum / self.count)
        variance = torch.as_tensor(self._squares / self.count) - mean**2
        return mean.numpy(), variance.clamp(min=0.0).numpy()
