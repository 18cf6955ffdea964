"""What every task shares: a backbone with stages, normalisation, named parameter groups, a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from tl_lightning.backbones import InputSpec, Stages, create_backbone, input_spec
from tl_lightning.convolution_gradients import ConvolutionGradients
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.optim import install_lr_scale, lr_multiplier, match_memory_format, stage_param_groups
from tl_lightning.optim.param_groups import OUTSIDE

OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["constant", "step", "cosine", "one_cycle"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class NonFiniteLossError(RuntimeError):
    """The training loss of an epoch is not a finite number."""


class TaskModule(pl.LightningModule):
    """Base of the tasks: subclasses add the loss and the metrics.

    Images arrive as floats in [0, 1] and are normalised here, so that augmentation, Grad-CAM panels and exported
    models all see plain images.

    Args:
        backbone: A module, or the name of a torchvision model.
        num_classes: Classes of the target; used when ``backbone`` is a name.
        weights: ``"none"``, a torchvision weights name or the path of a checkpoint; used when ``backbone`` is a name.
        dropout: Probability of dropout before the head; used when ``backbone`` is a name.
        lr: Peak learning rate of the head; other stages are scaled by callbacks.
        optimizer: ``"adamw"`` or ``"sgd"`` (Nesterov momentum 0.9).
        weight_decay: Decoupled weight decay; not applied to biases and normalisation parameters.
        schedule: Shape of the learning rate over the optimizer steps of the fit.
        warmup_fraction: Share of the steps in which the rate rises linearly from 0, in [0, 1); never the last step.
        mean: Channel means of the images in [0, 1]; those of ``weights`` by default.
        std: Channel standard deviations; those of ``weights`` by default.
        granularity: Stages as the model's modules, or one for every boundary of its graph.
        channels_last: Keep images and convolutions in channels-last memory format: a training step of
            EfficientNet-Lite0 at 96 px takes two thirds of the time on a CPU; results are equal up to rounding.

    Raises:
        UserError: A value is impossible, or, at the start of a fit, the schedule needs a number of steps that the
            trainer cannot tell.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        weights: str = "none",
        dropout: float | None = None,
        lr: float = 1e-3,
        optimizer: OptimizerName = "adamw",
        weight_decay: float = 0.01,
        schedule: ScheduleName = "cosine",
        warmup_fraction: float = 0.1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        granularity: Literal["module", "boundary"] = "module",
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", optimizer, OPTIMIZERS)
        if not lr > 0:
            raise UserError(f"lr must be above 0, not {lr}")
        if not 0 <= warmup_fraction < 1:
            raise UserError(f"warmup_fraction must lie in [0, 1), not {warmup_fraction}")
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, nn.Module) else [])
        spec = input_spec(backbone, weights) if isinstance(backbone, str) else None
        self.backbone = self._build(backbone, weights, num_classes, dropout)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self._memory_format)
        self.num_classes = num_classes
        self.lr = lr
        self._register_normalisation(spec, mean, std)
        self._suffix: tuple[nn.Module, ...] = ()

    @staticmethod
    def _build(backbone: str | nn.Module, weights: str, num_classes: int, dropout: float | None) -> nn.Module:
        if isinstance(backbone, str):
            return create_backbone(backbone, weights, num_classes, dropout=dropout)
        return backbone

    def _register_normalisation(
        self, spec: InputSpec | None, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        """Keep mean and std as buffers outside the state dict: they belong to the weights, not to the training."""
        mean = mean or (spec.mean if spec else (0.485, 0.456, 0.406))
        std = std or (spec.std if spec else (0.229, 0.224, 0.225))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @cached_property
    def stages(self) -> Stages:
        """The backbone's stages by depth."""
        return Stages(self.backbone, self.hparams["granularity"])

    def normalise(self, image: Tensor) -> Tensor:
        """Return ``image`` [B, C, H, W] in [0, 1] with the channel statistics of the pretraining."""
        return (image - self.mean).div_(self.std).contiguous(memory_format=self._memory_format)

    def forward(self, image: Tensor) -> Any:
        """Return the backbone's output for images [B, 3, H, W] in [0, 1]."""
        return self.run(self.backbone, self.normalise(image))

    def run(self, network: nn.Module, maps: Tensor) -> Any:
        """Return ``network(maps)``, on a CPU with ``ConvolutionGradients`` for the training steps."""
        trains = torch.is_grad_enabled() and maps.device.type == "cpu"
        if not trains or network._compiled_call_impl is not None or torch.compiler.is_compiling():
            return network(maps)
        with ConvolutionGradients():
            return network(maps)

    def use_suffix(self, suffix: nn.Module | None) -> None:
        """Run ``suffix`` on the activations of a batch that holds ``activation`` in place of ``image``.

        The suffix shares its parameters with the backbone (see ``Stages.split``), so it is kept out of the module
        tree: registered, every parameter would be owned twice.
        """
        self._suffix = (suffix,) if suffix is not None else ()

    def output(self, batch: dict[str, Any]) -> Any:
        """Return the output for a batch that holds ``image``, or ``activation`` and a suffix to run on it."""
        if "activation" not in batch:
            return self(batch["image"])
        if not self._suffix:
            raise UserError("the batch holds activations but no suffix is set: call use_suffix first")
        suffix = self._suffix[0]
        suffix.training = self.training  # outside the module tree, so train() does not reach it
        activation = batch["activation"]
        if activation.ndim == 4:
            activation = activation.contiguous(memory_format=self._memory_format)
        return self.run(suffix, activation)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build every named group (stage x decay) once, under one schedule for all of them."""
        groups = stage_param_groups(
            self.backbone,
            self.stages,
            lr=self.lr,
            weight_decay=self.hparams["weight_decay"],
            prefix="backbone.",
        )
        groups += self._other_groups()
        options: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if self.hparams["optimizer"] == "sgd" else {}
        # a fused step unscales the gradients of fp16 itself, too late for clipping them
        fused = getattr(self.trainer.precision_plugin, "scaler", None) is None
        optimizer = OPTIMIZERS[self.hparams["optimizer"]](groups, lr=self.lr, fused=fused, **options)  # type: ignore[call-arg]
        install_lr_scale(optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._multiplier())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _multiplier(self) -> Callable[[int], float]:
        """Return the schedule over the steps of the fit."""
        steps, schedule = self.trainer.estimated_stepping_batches, self.hparams["schedule"]
        share = self.hparams["warmup_fraction"]
        if steps in (-1, math.inf):
            if schedule != "constant" or share:
                raise UserError(
                    f"schedule {schedule!r} with warmup_fraction={share} needs to know the steps of the fit, but the "
                    "trainer has no end or no length of the data: set max_steps, or take 'constant' and 0"
                )
            steps = 1
        steps = max(1, int(steps))
        return lr_multiplier(schedule, steps, min(round(share * steps), steps - 1))

    def _other_groups(self) -> list[dict[str, Any]]:
        """Return the named groups of parameters outside the backbone: behind its last stage, never frozen."""
        groups: list[dict[str, Any]] = []
        decay = self.hparams["weight_decay"]
        for name, part in self.named_children():
            if name != "backbone":
                stages = _OneStage((name,), part)
                groups += stage_param_groups(part, stages, lr=self.lr, weight_decay=decay, prefix=f"{name}.")
        held = {id(p) for part in self.children() for p in part.parameters()}
        own = nn.ParameterDict({n: p for n, p in self.named_parameters(recurse=False) if id(p) not in held})
        groups += stage_param_groups(own, _OneStage((OUTSIDE,), own), lr=self.lr, weight_decay=decay)
        for group in groups:
            group["stage"] = len(self.stages)
        return groups

    def on_train_start(self) -> None:
        """Let a run go on in its memory format and, if stopped in mid-epoch, with the batches that were left.

        Lightning gives a loader its state when it sets the data up, and ``configure_optimizers`` makes that happen
        before the checkpoint is read, since it asks for the number of steps.
        """
        for optimizer in self.trainer.optimizers:
            match_memory_format(optimizer)
        self.trainer.fit_loop._load_combined_loader_states()

    def on_train_epoch_end(self) -> None:
        """End a run that has diverged; one look an epoch, so that no step waits for the device."""
        loss = self.trainer.callback_metrics.get("train/loss")
        if loss is not None and not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the training loss is {loss.item()} in epoch {self.current_epoch}; lower the learning rate {self.lr:g}"
            )


@dataclass
class _OneStage:
    """A part of a module as a single stage."""

    names: tuple[str, ...]
    part: nn.Module

    def parameter_stage(self) -> dict[str, int]:
        return {name: 0 for name, _ in self.part.named_parameters()}
