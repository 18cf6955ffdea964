"""The cascade of the sanity check: a model whose weights are randomised layer by layer, from the top down."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl_lightning.errors import UserError, unknown_name


def weight_randomisation_cascade(
    model: nn.Module, layers: Sequence[str] | None = None, *, seed: int = 0
) -> Iterator[tuple[str, nn.Module]]:
    """Yield copies of a model with the weights of one more layer replaced by noise each time.

    Adebayo et al. 2018, "Sanity checks for saliency maps", cascading randomisation. Each parameter tensor is drawn from
    a normal distribution with its own mean and standard deviation. Buffers stay, so that the statistics of a BatchNorm
    layer belong to weights that are gone: see ``estimate_batch_norm``.

    Args:
        model: The trained model; it is copied, and neither it nor the global random numbers change.
        layers: Paths of modules within the model, in the order in which they are randomised: the head first. All
            modules that own parameters, last to first as registered, by default.
        seed: Fixes the noise; a layer's noise depends on its place in ``layers``.

    Yields:
        The name of the layer just randomised and the copy. It is the same copy each time: use it before going on.

    Raises:
        UserError: A layer does not exist or has no parameters.
    """
    modules = dict(model.named_modules())
    if layers is None:
        layers = [name for name, module in modules.items() if any(True for _ in module.parameters(recurse=False))][::-1]
    for name in layers:
        if name not in modules:
            raise unknown_name("layer", name, modules)
        if not any(True for _ in modules[name].parameters()):
            raise UserError(f"layer {name!r} has no parameters to randomise")
    return _cascade(_copy(model), layers, seed)


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, images: Tensor, batch_size: int = 128) -> None:
    """Set the statistics of all BatchNorm layers of a model to those of its activations on ``images``.

    For a model with random weights: with the statistics of the trained one its signal dies out or saturates, every
    Grad-CAM map can be empty, and a sanity check is passed by no map at all. As ``torch.optim.swa_utils.update_bn``,
    which would leave dropout and the like on.

    Args:
        model: Changed in place; the mode of each module is the one of before.
        images: [N, channels, H, W], N at least 2, as the model's forward takes them, on its device.
        batch_size: Images at one time; the statistics are the mean of those of the batches.

    Raises:
        UserError: There are fewer than two images.
    """
    if len(images) < 2:
        raise UserError(f"statistics of BatchNorm need at least two images, not {len(images)}")
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
            layer.train()
        for batch in images.tensor_split(-(-len(images) // batch_size)):  # of equal size: none holds a single image
            model(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode


def _cascade(model: nn.Module, layers: Sequence[str], seed: int) -> Iterator[tuple[str, nn.Module]]:
    for place, name in enumerate(layers):
        generator = torch.Generator().manual_seed(seed + place)
        for parameter in model.get_submodule(name).parameters():
            _randomise(parameter, generator)
        yield name, model


@torch.no_grad()
def _randomise(parameter: nn.Parameter, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
    parameter.copy_(noise * parameter.std(correction=0) + parameter.mean())


def _copy(model: nn.Module) -> nn.Module:
    """Return a deep copy; a LightningModule is copied without its trainer, which holds loaders and loggers."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            trainer = module.__dict__.get("_trainer")
            if trainer is not None:
                module.__dict__["_trainer"] = None
                stack.callback(module.__dict__.__setitem__, "_trainer", trainer)
        return copy.deepcopy(model)
