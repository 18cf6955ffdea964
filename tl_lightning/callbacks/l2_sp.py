"""L2-SP: a penalty on the distance to the pretrained weights, in any LightningModule with one optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tl_lightning.backbones import Stages
from tl_lightning.callbacks.freezing_schedule import Depth, frozen_stages
from tl_lightning.callbacks.stage_callback import StageCallback
from tl_lightning.errors import UserError


class L2SP(StageCallback):
    """Pulls the weights towards those that the fit began with (Li, Grandvalet & Davoine 2018, "L2-SP").

    The penalty is ``alpha / 2 * |w - w0|^2`` over the pretrained parameters and ``beta / 2 * |v|^2`` over the new ones
    (the head, and whatever lies outside the staged module). Its gradient is added once a
    step, to gradients that are accumulated and averaged over ranks by then, and before they are clipped: the step is
    the one that a loss with the penalty would make. Biases and normalisation are pulled too, as in the paper,
    buffers are not. A parameter that is frozen, at the time, gets nothing.

    It takes the place of weight decay: give the optimizer none. The starting point is kept in checkpoints, so that a
    resumed fit is pulled to the same weights.

    Args:
        alpha: Strength of the pull to the pretrained weights (the paper tries 0.001, 0.01 and 0.1).
        beta: Strength of the pull of new parameters to 0 (0.01 in the paper).
        pretrained: The stages that are pretrained, as a depth of ``ProgressiveUnfreezing``: all below the head;
            ``"all"`` where the head lies outside the module.
        attribute: Name of the pretrained submodule; ``""`` for the whole LightningModule.
        stages: Its stages, as for ``ProgressiveUnfreezing``.

    Raises:
        UserError: A strength is negative, or a checkpoint was made with other ones or without this callback.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 0.01,
        *,
        pretrained: Depth = "head",
        attribute: str = "backbone",
        stages: Sequence[str] | Stages | None = None,
    ) -> None:
        super().__init__(attribute, stages)
        if not (alpha >= 0 and beta >= 0):
            raise UserError(f"alpha and beta of L2-SP must not be negative, not {alpha} and {beta}")
        self.alpha, self.beta, self.pretrained = alpha, beta, pretrained
        self._anchors: dict[str, Tensor] = {}
        self._fitting = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the starting point of an earlier fit."""
        self._fitting = stage == "fit"
        if self._fitting:
            self._anchors = {}
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the present weights as the starting point, unless a checkpoint brought one."""
        super().on_train_start(trainer, pl_module)
        known = self._anchors
        self._anchors = {
            name: known[name].to(parameter.device) if name in known else parameter.detach().clone()
            for name, parameter in pl_module.named_parameters()
            if self._is_pretrained(parameter)
        }

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the penalty."""
        scale = _gradient_scale(trainer, optimizer)
        with torch.no_grad():
            for parameter, strength, shift in self._terms(pl_module):
                if parameter.requires_grad:
                    pull = scale * strength * shift.detach()
                    parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)

    def penalty(self, pl_module: pl.LightningModule) -> Tensor:
        """Return the penalty of the present weights, frozen ones included, as a scalar that can be differentiated."""
        return torch.stack(
            [0.5 * strength * shift.square().sum() for _, strength, shift in self._terms(pl_module)]
        ).sum()

    def _terms(self, pl_module: pl.LightningModule) -> Iterator[tuple[nn.Parameter, float, Tensor]]:
        """Yield every parameter that is pulled, how strongly, and its distance from where it is pulled to."""
        for name, parameter in pl_module.named_parameters():
            if self._is_pretrained(parameter) and self.alpha:
                yield parameter, self.alpha, parameter - self._anchors[name]
            elif not self._is_pretrained(parameter) and self.beta:
                yield parameter, self.beta, parameter

    def _is_pretrained(self, parameter: nn.Parameter) -> bool:
        return self._stage_of_id.get(id(parameter), len(self.stages)) < frozen_stages(self.stages, self.pretrained)

    def state_dict(self) -> dict[str, Any]:
        """Return the starting point, and the strengths to be compared at resume."""
        return {"alpha": self.alpha, "beta": self.beta, "anchors": self._anchors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the starting point of the checkpoint.

        Raises:
            UserError: It was made with other strengths.
        """
        if not self._fitting:
            return
        for key in ("alpha", "beta"):
            if state_dict[key] != getattr(self, key):
                raise UserError(
                    f"the checkpoint was made with another {key} of L2-SP: {state_dict[key]} there, "
                    f"{getattr(self, key)} here"
                )
        self._anchors = dict(state_dict["anchors"])

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to resume a run that was trained without the penalty: its starting point is not known."""
        if self._fitting and self.state_key not in checkpoint.get("callbacks", {}):
            raise UserError(
                "the checkpoint was made without L2SP, the weights to pull to are not in it: load its weights into the "
                "module and start a new fit instead of resuming"
            )


def _gradient_scale(trainer: pl.Trainer, optimizer: Optimizer) -> float:
    """Return the factor that the gradients still carry: a fused optimizer unscales those of fp16 in its step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return scaler.get_scale()
