"""Progressive unfreezing that is right: frozen means frozen, in every epoch, rank and resumed run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from tl_lightning.backbones import Stages
from tl_lightning.callbacks.bn_recalibration import recalibrate
from tl_lightning.callbacks.discriminative_lr import DiscriminativeLR
from tl_lightning.callbacks.freezing_schedule import Depth, FreezingSchedule, as_schedule, check_schedule
from tl_lightning.callbacks.frozen import BnPolicy, FrozenStages
from tl_lightning.callbacks.plan import Plan, PlannedRates, make_plan
from tl_lightning.callbacks.stage_callback import StageCallback, find_stages, staged_module
from tl_lightning.callbacks.swa_guard import SwaGuard
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.optim.lr_scale import FLOOR, WARMUP


class ProgressiveUnfreezing(StageCallback):
    """Freezes the shallow stages of a module and thaws them by a schedule, from the head down.

    A frozen stage gets no gradient, no optimizer step and no weight decay; its layers stay in eval mode even if
    ``train()`` is called, and its buffers do not change. The frozen set is a pure function of the schedule, the epoch
    and the monitored values so far; it is applied at fit start, at resume, and whenever the epoch changes, so that a
    run resumed anywhere agrees with one that was never stopped. All parameter groups exist from the start (no group is
    ever added) and DDP wraps all parameters, so that schedulers and ranks agree throughout.

    Works in any LightningModule with one optimizer. Everything is given back when the fit ends.

    Args:
        schedule: A depth (number of frozen stages, negative from the head: -1 trains the head only; ``"none"``;
            ``"head"``; ``"all"``: the whole module, when the classifier lies elsewhere; or the first stage that
            trains), a mapping of epochs to depths, or ``Gradual`` or ``OnPlateau``.
        attribute: Name of the trained submodule; ``""`` for the whole LightningModule.
        stages: Its stages; by default found by tracing, or, for a model that cannot be traced, the paths of its
            modules, shallow to deep.
        bn: What BatchNorm layers of frozen stages do: ``"eval"``: frozen like all else. ``"affine_only"``: scale and
            shift train, statistics are frozen. ``"recalibrate"``: statistics are estimated anew on the training images
            before the first step (Li et al. 2017, AdaBN), then frozen. ``"train"``: as in an unfrozen stage.
        warmup_steps: Steps in which the rate of a thawed stage rises linearly to that of its schedule: Adam's first
            step would move every weight by the full rate.
        lr_floor: The rate of thawed stages does not fall below this share of their peak rate, so that a stage that
            thaws in the tail of a schedule still learns.
        allow_never_trained: Whether a schedule with several depths may leave stages frozen to the end.

    Raises:
        UserError: At the start of the fit (or of the plan), for everything that cannot work.
    """

    def __init__(
        self,
        schedule: Depth | Mapping[int, Depth] | FreezingSchedule,
        *,
        attribute: str = "backbone",
        stages: Sequence[str] | Stages | None = None,
        bn: BnPolicy = "eval",
        warmup_steps: int = 0,
        lr_floor: float = 0.0,
        allow_never_trained: bool = False,
    ) -> None:
        super().__init__(attribute, stages)
        if bn not in get_args(BnPolicy):
            raise unknown_name("BatchNorm policy", bn, get_args(BnPolicy))
        if warmup_steps < 0 or not 0 <= lr_floor <= 1:
            raise UserError(
                f"warmup_steps must not be negative and lr_floor lie in [0, 1], not {warmup_steps} and {lr_floor}"
            )
        self.schedule = as_schedule(schedule)
        self.bn: BnPolicy = bn
        self.warmup_steps, self.lr_floor = warmup_steps, lr_floor
        self.allow_never_trained = allow_never_trained
        self._frozen: FrozenStages | None = None
        self._swa = SwaGuard()
        self._fitting = False
        self._resumed: dict[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self._epoch = 0
        self._history: dict[int, float] = {}
        self._thaw_steps: dict[int, int] = {}  # stage -> optimizer steps taken when it thawed
        self._recalibrated = False

    @property
    def frozen(self) -> FrozenStages:
        """The frozen part of the module in the present fit."""
        if self._frozen is None:
            raise RuntimeError("ProgressiveUnfreezing knows what is frozen only while a fit runs")
        return self._frozen

    def plan(
        self,
        module: nn.Module,
        epochs: int,
        *,
        input_size: Sequence[int] = (3, 224, 224),
        lr: float | None = None,
        multiplier: Callable[[int], float] | None = None,
        steps_per_epoch: int = 1,
        discriminative: DiscriminativeLR | None = None,
    ) -> Plan:
        """Return what this schedule will do in every epoch, without training; printed, it is a table.

        Args:
            module: The LightningModule, or the staged module itself.
            epochs: Number of epochs.
            input_size: Shape of one input of the staged module; only shapes are run through it.
            lr: Base learning rate, if the plan shall hold rates.
            multiplier: Factor of the base rate by optimizer step (``optim.lr_multiplier(...)``); 1 by default.
            steps_per_epoch: Optimizer steps in an epoch.
            discriminative: The callback that scales the rates of the stages, if there is one.

        Raises:
            UserError: The schedule cannot do what it says, or would never train some stages and was not told so.
        """
        staged = staged_module(module, self.attribute) if isinstance(module, pl.LightningModule) else module
        stages = find_stages(staged, self._given)
        check_schedule(self.schedule, stages, epochs, self.allow_never_trained)
        check_policy(FrozenStages(staged, stages, self.bn), self.schedule.depth_at(stages, 0, {}))
        rates = PlannedRates(lr, multiplier, steps_per_epoch, self.warmup_steps, self.lr_floor, discriminative)
        return make_plan(module, staged, stages, self.schedule, self.bn, epochs, input_size, rates)

    # ---- fit start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the schedule and prepare the strategy."""
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        if trainer.global_step == 0:
            self._forget()
        self._frozen, self._resumed = None, {}
        super().setup(trainer, pl_module, stage)
        if isinstance(trainer.strategy, DDPStrategy):
            self._prepare_ddp(trainer.strategy)

    def resolve(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the stages and check the schedule against them."""
        super().resolve(trainer, pl_module)
        unlimited = trainer.max_epochs in (None, -1) or trainer.fast_dev_run  # type: ignore[attr-defined]
        epochs = None if unlimited else trainer.max_epochs
        check_schedule(self.schedule, self.stages, epochs, self.allow_never_trained)
        self._frozen = FrozenStages(staged_module(pl_module, self.attribute), self.stages, self.bn)
        check_policy(self._frozen, self.schedule.depth_at(self.stages, 0, {}))
        if self._resumed:
            self._compare(self._resumed)

    def _prepare_ddp(self, strategy: DDPStrategy) -> None:
        """DDP sees what is trainable when it wraps: all that will ever train, or, if nothing thaws, what trains."""
        if self._frozen is not None and self.schedule.is_static(self.stages):
            self._apply(self._epoch, step=0)
            return
        options = strategy._ddp_kwargs
        if options.get("static_graph"):
            raise UserError("stages thaw during the fit, which DDP's static_graph forbids: leave static_graph out")
        if not options.setdefault("find_unused_parameters", True):
            raise UserError(
                "stages thaw during the fit, so DDP must look for unused parameters: pass strategy='ddp' (it is then "
                "set for you) or 'ddp_find_unused_parameters_true'"
            )

    def before_optimizer(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show every parameter as trainable: configure_optimizers often asks, and all groups must exist."""
        self.frozen.release()

    def after_optimizer(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Freeze, before any other callback can train (the learning-rate finder does, in on_fit_start)."""
        self._check_covered(pl_module, optimizer)
        self._apply(self._epoch, trainer.global_step)

    def _check_covered(self, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parameters = dict(self.frozen.module.named_parameters())
        for name in self.frozen.trainable_at(self.schedule.deepest_thaw(self.stages)):
            if id(parameters[name]) not in held:
                raise UserError(
                    f"{name!r} is to be trained but configure_optimizers does not give it to the optimizer: give it "
                    f"all parameters of {self.attribute or 'the module'!r}, frozen ones too"
                )
        outside = held - {id(p) for p in parameters.values()}
        if not outside and not self.frozen.trainable_at(self.schedule.depth_at(self.stages, 0, {})):
            raise UserError("the schedule freezes the whole model at epoch 0: nothing would train; thaw the head")

    # ---- progress

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze for the epoch in which a resumed run goes on."""
        super().on_train_start(trainer, pl_module)
        self._warn_of_lost_validation(trainer)
        self._apply(trainer.current_epoch, trainer.global_step)
        if self.bn == "recalibrate" and not self._recalibrated:
            recalibrate(trainer, pl_module, self.frozen)
            self._recalibrated = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Thaw what the schedule thaws in this epoch."""
        self._apply(trainer.current_epoch, trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set warm-up and floor of thawed stages; freeze, if this is the first hook that knows the epoch."""
        if trainer.current_epoch != self._epoch:
            self._apply(trainer.current_epoch, trainer.global_step)
        if batch_idx == 0:
            self._swa.restore(trainer, self.frozen)
        self._set_rates(trainer)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the monitored value, before a checkpoint of this validation is saved."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._observe(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the monitored value of a fit without validation."""
        if not trainer.enable_validation:
            self._observe(trainer)
        self._swa.remember(trainer, self.frozen)

    def _observe(self, trainer: pl.Trainer) -> None:
        monitor = self.schedule.monitor
        if monitor is None:
            return
        if monitor not in trainer.callback_metrics:
            raise unknown_name("monitored metric", monitor, trainer.callback_metrics)
        # one value for all ranks: they must thaw together, also when the module does not reduce its metric
        self._history[trainer.current_epoch] = trainer.strategy.broadcast(float(trainer.callback_metrics[monitor]))

    def _warn_of_lost_validation(self, trainer: pl.Trainer) -> None:
        """Say so when the schedule must go on without a value: Lightning does not repeat that validation."""
        lost = trainer.current_epoch - 1
        observed = not trainer.enable_validation or trainer.check_val_every_n_epoch != 1 or lost in self._history
        if self.schedule.monitor is not None and lost >= 0 and not observed:
            rank_zero_warn(
                f"the checkpoint was saved after the last batch of epoch {lost} but before its validation, which is "
                f"not repeated: the schedule goes on without {self.schedule.monitor!r} of that epoch"
            )

    def _apply(self, epoch: int, step: int) -> None:
        depth, before = self.schedule.depth_at(self.stages, epoch, self._history), self.frozen.depth
        self._epoch = epoch
        if depth == before:
            return
        for stage in range(depth, before or 0):
            self._thaw_steps.setdefault(stage, step)
        self.frozen.apply(depth)
        torch.compiler.reset()  # a compiled module would keep the graph of what was frozen

    def _set_rates(self, trainer: pl.Trainer) -> None:
        if not self._thaw_steps or not (self.warmup_steps or self.lr_floor):
            return
        for stage, group in self.staged_groups(trainer.strategy.optimizers[0]):
            if stage in self._thaw_steps:
                taken = trainer.global_step - self._thaw_steps[stage]
                group[WARMUP] = min(1.0, (taken + 1) / (self.warmup_steps + 1))
                group[FLOOR] = self.lr_floor * max(group.get("max_lr", 0.0), group.get("initial_lr", group["lr"]))

    # ---- end and resume

    def _undo(self, trainer: pl.Trainer) -> None:
        super()._undo(trainer)
        if self._frozen is not None:
            self._frozen.release()

    def state_dict(self) -> dict[str, Any]:
        """Return the progress, and what the schedule is, to be compared at resume."""
        return {
            "epoch": self._epoch,
            "history": dict(self._history),
            "thaw_steps": dict(self._thaw_steps),
            "recalibrated": self._recalibrated,
            "made_with": self._made_with() if self._stages is not None else {},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made.

        Raises:
            UserError: The checkpoint was made with another schedule.
        """
        if not self._fitting:
            return
        self._epoch = state_dict["epoch"]
        self._history, self._thaw_steps = dict(state_dict["history"]), dict(state_dict["thaw_steps"])
        self._recalibrated = state_dict["recalibrated"]
        self._resumed = state_dict["made_with"]
        if self._stages is not None:
            self._compare(self._resumed)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to resume a run that was trained without this callback."""
        if self._fitting and self.state_key not in checkpoint.get("callbacks", {}):
            raise UserError(
                f"the checkpoint was made without ProgressiveUnfreezing on {self.attribute!r}: load its weights into "
                "the module and start a new fit instead of resuming"
            )

    def _made_with(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule.describe(self.stages),
            "bn": self.bn,
            "warmup_steps": self.warmup_steps,
            "lr_floor": self.lr_floor,
            "stages": list(self.stages.names),
        }

    def _compare(self, saved: dict[str, Any]) -> None:
        for key, now in self._made_with().items():
            if saved.get(key, now) != now:
                raise UserError(
                    f"the checkpoint was made with another {key}: {saved[key]} there, {now} here; resume with the "
                    "same, or load its weights and start a new fit"
                )


def check_policy(frozen: FrozenStages, depth: int) -> None:
    """Refuse a BatchNorm policy where no frozen stage has BatchNorm: it would read as done and change nothing.

    Raises:
        UserError: See above.
    """
    if frozen.bn != "eval" and depth and not any(True for _ in frozen.batch_norms(depth)):
        raise UserError(f"bn={frozen.bn!r} has nothing to act on: the frozen stages hold no BatchNorm; use bn='eval'")
