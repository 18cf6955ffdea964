"""Look into a model without leaving a trace."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without parameter gradients, and restore it exactly, after an error too.

    Inside, every module is in evaluation mode, no parameter requires a gradient or holds one (so that backward passes
    add to none), gradients with respect to activations are on, whatever the caller's mode, and compiled modules run
    eagerly, because hooks that are added after compilation do not fire. Afterwards the mode of every module, every
    ``requires_grad`` and ``.grad`` (the same tensors) and the states of the random number generators of torch (all
    devices), NumPy and Python are as before. Hooks are the business of whoever adds them.

    Args:
        model: Any module, for example a LightningModule in the middle of gradient accumulation.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(isolated_rng())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # imported by whoever compiles; seconds to import for everybody else
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module, _ in modes:
                module.training = False
            for parameter, _, _ in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
            yield
        finally:
            for parameter, requires_grad, grad in parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
            for module, training in modes:
                module.training = training


@contextlib.contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the random number generators of torch (all devices), NumPy and Python afterwards.

    Args:
        seed: Seed of torch's generators inside; by default they go on from where they are.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
