"""What a training costs: seconds, images a second, memory, parameters, floating point operations."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tl_lightning.callbacks.peak_memory import PeakMemory
from tl_lightning.callbacks.stopwatch import Stopwatch
from tl_lightning.errors import UserError
from tl_lightning.flops import flop_counter


class EfficiencyMonitor(Callback):
    """Measure a fit; ``summary()`` returns the numbers and every logger gets them as ``efficiency/*`` at its end.

    - ``train_seconds``: the training part of all epochs, waiting for data included; validation, checkpoints and
      everything before the first epoch excluded. On CUDA it is time of the device.
    - ``fit_seconds``: wall time of the whole fit.
    - ``extraction_seconds``: what the data module has spent so far on computing activations (``CachedDataModule``).
    - ``images_per_second``: images over training time without the warm-up steps and without the steps whose
      operations are counted; of all processes together. A run that has only warm-up steps leaves out the first one.
    - ``peak_memory_mb`` and ``memory_increase_mb``: the peak, and the peak above the start, in MiB; see
      ``PeakMemory`` for what it means on each device.
    - ``trainable_parameters``, ``max_trainable_parameters``, ``total_parameters``: at the end of the fit, and the most
      that trained at one time.
    - ``forward_flops``, ``backward_flops``: floating point operations an image (a multiply-add is two) of matrix
      products, convolutions and attention in the last training state.
    - ``train_flops``: those of the whole fit, on this process.
    - ``optimizer_steps``, ``images_seen``: in this fit, the images of all processes together.

    The operations are counted in the training step itself, with what is frozen at that time: the first step of the
    fit and the first after any change of the trainable parameters. Nothing is run twice, so that random numbers,
    buffers and gradients are those of a run without the monitor. Such a step is slower and stays out of the
    throughput; a compiled module runs it uncompiled.

    A fit that is resumed from a checkpoint adds to what was measured up to it; the peak is the higher one and the
    throughput the mean over both parts by their seconds.

    Args:
        warmup_steps: First training batches that are left out of ``images_per_second``.
    """

    def __init__(self, *, warmup_steps: int = 3) -> None:
        if warmup_steps < 0:
            raise UserError(f"warmup_steps must be at least 0, not {warmup_steps}")
        self.warmup_steps = warmup_steps
        self._summary: dict[str, float] | None = None
        self._earlier: dict[str, float] = {}
        self._measuring = self._fitting = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew with a fit; what a test loads from a checkpoint is not part of the next one."""
        self._fitting, self._earlier = stage == "fit", {}

    def summary(self) -> dict[str, float]:
        """Return the numbers of the last fit.

        Raises:
            UserError: No fit has ended.
        """
        if self._summary is None:
            raise UserError("EfficiencyMonitor has nothing to report before a fit has ended")
        return dict(self._summary)

    @property
    def counting(self) -> bool:
        """Whether the operations of the present training step are counted, which makes it slower."""
        return hasattr(self, "_flops") and self._flops.counting

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure."""
        self._summary = None
        self._measuring = True
        self._fit_start = time.perf_counter()
        self._stopwatch = Stopwatch(trainer.strategy.root_device)
        self._memory = PeakMemory(trainer.strategy.root_device)
        self._memory.start()
        self._flops = StepFlops()
        self._steps = 0
        self._first_step = trainer.global_step
        self._trainable = -1
        self._max_trainable = 0
        self._train_flops = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._stopwatch.start()
        self._new_epoch = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the operations of this step where they may have changed."""
        self._stopwatch.start()
        trainable = _count(pl_module, trainable=True) if self._look(trainer) else self._trainable
        if trainable != self._trainable:
            self._trainable = trainable
            self._max_trainable = max(self._max_trainable, trainable)
            self._stopwatch.split(steady=self._warm)
            self._flops.start()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Separate forward from backward."""
        self._flops.backward_starts()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Separate backward from what follows."""
        self._flops.backward_ends()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images; split the time behind a step that does not belong to the throughput."""
        images = batch_images(batch)
        counted = self._flops.stop(images)
        self._train_flops += images * (self._flops.forward + self._flops.backward)
        self._stopwatch.count(images)
        steady = self._warm and not counted
        if trainer.is_last_batch:  # what follows, such as making the validation loader, is no training
            self._stopwatch.stop(steady)
        elif not steady:
            self._stopwatch.split(steady)
        self._steps += 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock; the next training batch or epoch starts it again."""
        if self._measuring:
            self._stopwatch.stop(steady=self._warm)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._stopwatch.stop(steady=self._warm)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave nothing behind that would count on."""
        if hasattr(self, "_flops"):
            self._flops.stop(1)
        self._measuring, self._earlier = False, {}

    def state_dict(self) -> dict[str, float]:
        """Return what was measured so far, for a fit that is resumed."""
        return self._measured(ranks=1) if self._measuring else {}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Add to what was measured before the checkpoint."""
        if self._fitting:
            self._earlier = dict(state_dict)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add up and log."""
        self._stopwatch.stop(steady=self._warm)
        ranks = trainer.world_size
        measured = self._measured(ranks)
        self._summary = {
            "train_seconds": measured["train_seconds"],
            "fit_seconds": measured["fit_seconds"],
            "extraction_seconds": float(getattr(trainer.datamodule, "extraction_seconds", 0.0)),  # type: ignore[attr-defined]
            "images_per_second": measured["images_per_second"],
            "peak_memory_mb": measured["peak_memory_mb"],
            "memory_increase_mb": measured["memory_increase_mb"],
            "trainable_parameters": _count(pl_module, trainable=True),
            "max_trainable_parameters": int(measured["max_trainable_parameters"]),
            "total_parameters": _count(pl_module, trainable=False),
            "forward_flops": self._flops.forward,
            "backward_flops": self._flops.backward,
            "train_flops": measured["train_flops"],
            "optimizer_steps": trainer.global_step - self._first_step,
            "images_seen": int(measured["images_seen"]) * ranks,
        }
        self._measuring, self._earlier = False, {}
        for logger in trainer.loggers:
            metrics = {f"efficiency/{name}": value for name, value in self._summary.items()}
            logger.log_metrics(metrics, step=trainer.global_step)
            logger.save()

    def _measured(self, ranks: int) -> dict[str, float]:
        """Return what adds up over the parts of a resumed fit, those before this one with it."""
        watch, earlier = self._stopwatch, self._earlier
        peak, increase = self._memory.read()
        seconds = watch.seconds(watch.spans)
        measured = {
            "train_seconds": seconds,
            "fit_seconds": time.perf_counter() - self._fit_start,
            "images_per_second": watch.throughput() * ranks,
            "peak_memory_mb": peak,
            "memory_increase_mb": increase,
            "max_trainable_parameters": self._max_trainable,
            "train_flops": self._train_flops,
            "images_seen": sum(span.images for span in watch.spans),
        }
        if earlier:
            for name in ("train_seconds", "fit_seconds", "train_flops", "images_seen"):
                measured[name] += earlier[name]
            for name in ("peak_memory_mb", "memory_increase_mb", "max_trainable_parameters"):
                measured[name] = max(measured[name], earlier[name])
            parts = [
                (measured["images_per_second"], seconds),
                (earlier["images_per_second"] * ranks, earlier["train_seconds"]),
            ]
            known = [(rate, weight) for rate, weight in parts if rate == rate and weight > 0]
            total = sum(weight for _, weight in known)
            if total:
                measured["images_per_second"] = sum(rate * weight for rate, weight in known) / total
        return measured

    @property
    def _warm(self) -> bool:
        return self._steps >= self.warmup_steps

    def _look(self, trainer: pl.Trainer) -> bool:
        """Whether the frozen set may have changed since the last look: callbacks change it between epochs."""
        new, self._new_epoch = getattr(self, "_new_epoch", True), False
        return new or self._trainable < 0


class StepFlops:
    """Counts the floating point operations of single training steps, forward and backward apart.

    Attributes:
        forward: Operations an image of the last counted step.
        backward: The same of its backward pass.
    """

    def __init__(self) -> None:
        self.forward = 0.0
        self.backward = 0.0
        self._stack: ExitStack | None = None
        self._mode = flop_counter()

    @property
    def counting(self) -> bool:
        """Whether a step is being counted."""
        return self._stack is not None

    def start(self) -> None:
        """Count from here on."""
        self._stack = ExitStack()
        if "torch._dynamo" in sys.modules:  # the counter sees nothing inside of compiled code
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        self._mode = self._stack.enter_context(flop_counter())
        self._in_backward = 0
        self._before_backward: int | None = None

    def backward_starts(self) -> None:
        """Note what was counted before a backward pass."""
        if self._stack is not None:
            self._before_backward = self._mode.get_total_flops()

    def backward_ends(self) -> None:
        """Add what was counted in a backward pass."""
        if self._stack is not None and self._before_backward is not None:
            self._in_backward += self._mode.get_total_flops() - self._before_backward
            self._before_backward = None

    def stop(self, images: int) -> bool:
        """Stop counting; return whether this step was counted."""
        if self._stack is None:
            return False
        self._stack.close()
        self._stack = None
        self.backward = self._in_backward / max(images, 1)
        self.forward = self._mode.get_total_flops() / max(images, 1) - self.backward
        return True


def batch_images(batch: Any) -> int:
    """Return the number of images of a batch: the length of the first tensor found in it."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    values = list(batch.values()) if isinstance(batch, dict) else list(batch) if isinstance(batch, list | tuple) else []
    for value in values:
        found = batch_images(value)
        if found:
            return found
    return 0


def _count(module: torch.nn.Module, trainable: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
