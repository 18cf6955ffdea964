"""The cascade of the sanity check: a model whose weights are randomised layer by layer, from the top down."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from tl_lightning.errors import UserError, unknown_name


def weight_randomisation_cascade(
    model: nn.Module, layers: Sequence[str] | None = None, *, seed: int = 0
) -> Iterator[tuple[str, nn.Module]]:
    """Yield copies of a model with the weights of one more layer replaced by noise each time.

    Adebayo et al. 2018, "Sanity checks for saliency maps", cascading randomisation. Each parameter tensor is drawn from
    a normal distribution with its own mean and standard deviation: activations keep their scale, so that maps change
    for what the layer had learnt and not because the signal dies out. Buffers stay.

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
