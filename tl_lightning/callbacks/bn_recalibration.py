"""Estimate BatchNorm statistics anew on the training images, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl_lightning.callbacks.efficiency import batch_images
from tl_lightning.callbacks.frozen import FrozenStages
from tl_lightning.callbacks.training_images import same_images
from tl_lightning.errors import UserError


def recalibrate(trainer: pl.Trainer, pl_module: pl.LightningModule, frozen: FrozenStages) -> None:
    """Set the statistics of the frozen BatchNorm layers to those of the training images, once.

    Li et al. 2017, "Revisiting Batch Normalization For Practical Domain Adaptation"; see `estimate_statistics`.

    Raises:
        UserError: The training data holds no batch, or its batches do not run through all of these layers.
    """
    layers = [layer for _, layer in frozen.batch_norms()]
    if not estimate_statistics(trainer, pl_module, layers, frozen.module):
        raise UserError(
            "bn='recalibrate' found no batch of training images that runs through all frozen BatchNorm layers: train "
            "without the activation cache, in batches of more than one image"
        )


def estimate_statistics(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    layers: list[_BatchNorm],
    stop_after: nn.Module | None,
    most_images: int | None = None,
) -> int:
    """Set the statistics of BatchNorm layers to those of the training images under the present weights.

    One pass with cumulative averages, as ``torch.optim.swa_utils.update_bn`` does, over batches in random order: in
    that of a folder each holds one class, and its variance is too small. Batches go through ``training_step``, in which
    logging does nothing. Global RNG states are left as they were; the layers end in eval mode.

    Args:
        trainer: In a fit.
        pl_module: In the mode in which it trains.
        layers: Of the module, or of a part of it.
        stop_after: A part of the module that holds all the layers: the step ends with its forward pass, before any
            loss or metric is computed and any label used. None runs the whole step.
        most_images: Images after which to stop, on each process; all of them by default.

    Returns:
        Number of batches, or of forward passes of the layer that had the fewest; a layer without any keeps the
        statistics that it had.
    """
    batches = images = 0
    with ExitStack() as stack:
        stack.enter_context(isolate_rng())
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_cumulative(layers))
        stack.enter_context(_silent(pl_module))
        if stop_after is not None:
            stack.enter_context(_stop_after(stop_after))
        for index, batch in enumerate(_batches(trainer)):
            batches += _forward(trainer, pl_module, layers, batch, index)
            images += batch_images(batch)
            if most_images is not None and images >= most_images:
                break
        passes = [int(layer.num_batches_tracked) for layer in layers if layer.num_batches_tracked is not None]
    _average_over_ranks(trainer, layers)
    return min([batches, *passes])


class _ForwardDone(Exception):
    """The staged module has run: not an error, it ends a training step early."""


def _forward(
    trainer: pl.Trainer, pl_module: pl.LightningModule, layers: list[_BatchNorm], batch: Any, index: int
) -> int:
    """Run one batch through the staged module; return whether it counts."""
    before = _buffers(layers)
    arguments = [index] if is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2) else []
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    try:
        with trainer.precision_plugin.train_step_context():
            pl_module.training_step(batch, *arguments)
    except _ForwardDone:
        pass
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # a last batch of one image has no variance
            raise
        for layer, buffers in zip(layers, before, strict=True):
            layer.load_state_dict(buffers, strict=False)
        return 0
    return 1


@contextmanager
def _cumulative(layers: list[_BatchNorm]) -> Iterator[None]:
    """Let the layers gather the plain average of the batch statistics; one that never runs keeps what it had."""
    momenta, before = [layer.momentum for layer in layers], _buffers(layers)
    for layer in layers:
        layer.training, layer.momentum = True, None  # not train(): a frozen layer does not listen to that
        layer.reset_running_stats()
    try:
        yield
    finally:
        for layer, momentum, buffers in zip(layers, momenta, before, strict=True):
            layer.training, layer.momentum = False, momentum
            if layer.num_batches_tracked is not None and layer.num_batches_tracked == 0:
                layer.load_state_dict(buffers, strict=False)


def _buffers(layers: list[_BatchNorm]) -> list[dict[str, Tensor]]:
    return [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]


@contextmanager
def _silent(pl_module: pl.LightningModule) -> Iterator[None]:
    """Let ``self.log`` do nothing: a training step may log before its forward pass."""
    for name in ("log", "log_dict"):
        vars(pl_module)[name] = _nothing
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            vars(pl_module).pop(name, None)


@contextmanager
def _stop_after(module: nn.Module) -> Iterator[None]:
    handle = module.register_forward_hook(_raise_done)
    try:
        yield
    finally:
        handle.remove()


def _raise_done(module: nn.Module, args: Any, output: Any) -> None:
    raise _ForwardDone


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _batches(trainer: pl.Trainer) -> Iterable[Any]:
    """Yield the training batches without touching the iterators and samplers of the fit."""
    combined = CombinedLoader(trainer.train_dataloader, "max_size_cycle")
    combined.flattened = [same_images(loader, trainer) for loader in combined.flattened]
    limit = trainer.num_training_batches
    for batch, index, _ in combined:
        if index >= limit:
            break
        yield batch


def _average_over_ranks(trainer: pl.Trainer, layers: list[_BatchNorm]) -> None:
    if trainer.world_size > 1:
        for layer in layers:
            for buffer in (layer.running_mean, layer.running_var):
                if buffer is not None:
                    buffer.copy_(trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))
