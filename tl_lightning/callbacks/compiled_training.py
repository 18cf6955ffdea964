"""Compile the trained module with torch.compile, for the training steps only."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import nn

from tl_lightning.callbacks.stage_callback import staged_module
from tl_lightning.errors import UserError


class CompiledTraining(Callback):
    """Runs a submodule through ``torch.compile`` in training; validation runs it as it is.

    The module is compiled in place, so that the names of its parameters stay as they are. Its compilation happens in
    the first training steps, whose time it takes, and again for every other batch size or image side. After the fit
    the module is as it was.

    Args:
        attribute: Name of the submodule; ``""`` for the whole LightningModule.
        backend: As for ``torch.compile``; ``"inductor"`` needs a C++ compiler, on a GPU triton.
        options: Further arguments of ``torch.compile``.

    Raises:
        UserError: At the start of the fit, where there is no compiler.
    """

    def __init__(self, *, attribute: str = "backbone", backend: str = "inductor", **options: Any) -> None:
        self.attribute = attribute
        self.backend = backend
        self.options = options
        self._compiled: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look for the compiler."""
        self._compiled = None
        if stage == "fit" and self.backend == "inductor":
            check_compiler(trainer.strategy.root_device.type)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the compiled call in place; what it compiles to is found in the first step."""
        module = staged_module(pl_module, self.attribute)
        module.compile(backend=self.backend, **self.options)
        self._compiled = module._compiled_call_impl

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate without it: eval mode would be compiled once more."""
        self._use(pl_module, None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on with it after a validation."""
        self._use(pl_module, self._compiled)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the module as it was."""
        self._use(pl_module, None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self._use(pl_module, None)

    def _use(self, pl_module: pl.LightningModule, call: Any) -> None:
        module: nn.Module = staged_module(pl_module, self.attribute)
        module._compiled_call_impl = call


def check_compiler(device: str) -> None:
    """Raise ``UserError`` where torch.compile's default backend lacks what it needs.

    Args:
        device: Type of the device, ``"cpu"`` or ``"cuda"``.
    """
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("torch.compile needs triton on a GPU, which is not installed: install it or leave compile off")
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    named = os.environ.get("CXX") or usual
    if shutil.which(named) is None:
        raise UserError(
            f"torch.compile needs a C++ compiler, but there is no {named}: install one, name it in the environment "
            "variable CXX, or leave compile off"
        )
