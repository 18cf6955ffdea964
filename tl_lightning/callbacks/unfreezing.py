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
from tl_lightning.callbacks.freezing_schedule import Depth, FreezingSchedule, as_schedule, check_schedule, freezing_end
from tl_lightning.callbacks.frozen import BnPolicy, FrozenStages
from tl_lightning.callbacks.plan import Plan, PlannedRates, make_plan
from tl_lightning.callbacks.progress import Progress, check_same
from tl_lightning.callbacks.stage_callback import StageCallback, find_stages, staged_module
from tl_lightning.callbacks.swa_guard import SwaGuard
from tl_lightning.callbacks.unfreezing_checks import check_optimizer, check_policy, look_for_unused_parameters
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.optim.lr_scale import FLOOR, PEAK, WARMUP


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
        freeze_from: Stages from this one on, the head among them, stay frozen too, so that shallow stages train alone
            (surgical fine-tuning, Lee et al. 2023); gradients pass through them. By default none.
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
        freeze_from: Depth | None = None,
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
        self.freeze_from = freeze_from
        self.allow_never_trained = allow_never_trained
        self._frozen: FrozenStages | None = None
        self._swa = SwaGuard()
        self._fitting = False
        self._progress = Progress()
        self._resumed: dict[str, Any] = {}

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
        end = freezing_end(self.schedule, stages, self.freeze_from)
        check_policy(FrozenStages(staged, stages, self.bn, end), self.schedule.depth_at(stages, 0, {}))
        rates = PlannedRates(lr, multiplier, steps_per_epoch, self.warmup_steps, self.lr_floor, discriminative)
        return make_plan(module, staged, stages, self.schedule, self.bn, epochs, input_size, rates, end)

    # ---- fit start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the schedule and prepare the strategy."""
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        if trainer.global_step == 0:
            self._progress = Progress()
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
        end = freezing_end(self.schedule, self.stages, self.freeze_from)
        self._frozen = FrozenStages(staged_module(pl_module, self.attribute), self.stages, self.bn, end)
        check_policy(self._frozen, self.schedule.depth_at(self.stages, 0, {}))
        check_same(self._resumed, self._made_with())

    def _prepare_ddp(self, strategy: DDPStrategy) -> None:
        """Let DDP wrap what will ever train: all parameters, or, where nothing thaws, what trains already."""
        if self._frozen is not None and self.schedule.is_static(self.stages):
            self._apply(self._progress.epoch, step=0)
        else:
            look_for_unused_parameters(strategy)

    def before_optimizer(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show every parameter as trainable: configure_optimizers often asks, and all groups must exist."""
        self.frozen.release()

    def after_optimizer(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Freeze, before any other callback can train (the learning-rate finder does, in on_fit_start)."""
        first, last = self.schedule.depth_at(self.stages, 0, {}), self.schedule.deepest_thaw(self.stages)
        check_optimizer(self.frozen, optimizer, first, last, self.attribute)
        self._apply(self._progress.epoch, trainer.global_step)

    # ---- progress

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze for the epoch in which a resumed run goes on."""
        super().on_train_start(trainer, pl_module)
        self._warn_of_lost_validation(trainer)
        self._apply(trainer.current_epoch, trainer.global_step)
        if self.bn == "recalibrate" and not self._progress.recalibrated:
            recalibrate(trainer, pl_module, self.frozen)
            self._progress.recalibrated = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Thaw what the schedule thaws in this epoch."""
        self._apply(trainer.current_epoch, trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set warm-up and floor of thawed stages; freeze, if this is the first hook that knows the epoch."""
        if trainer.current_epoch != self._progress.epoch:
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
        value = trainer.strategy.broadcast(float(trainer.callback_metrics[monitor]))
        self._progress.history[trainer.current_epoch] = value

    def _warn_of_lost_validation(self, trainer: pl.Trainer) -> None:
        """Say so when the schedule must go on without a value: Lightning does not repeat that validation."""
        lost = trainer.current_epoch - 1
        expected = trainer.enable_validation and trainer.check_val_every_n_epoch == 1
        if self.schedule.monitor is not None and lost >= 0 and expected and lost not in self._progress.history:
            rank_zero_warn(
                f"the checkpoint was saved after the last batch of epoch {lost} but before its validation, which is "
                f"not repeated: the schedule goes on without {self.schedule.monitor!r} of that epoch"
            )

    def _apply(self, epoch: int, step: int) -> None:
        depth, before = self.schedule.depth_at(self.stages, epoch, self._progress.history), self.frozen.depth
        self._progress.epoch = epoch
        if depth != before:
            self._progress.thaw(depth, before, step)
            self.frozen.apply(depth)
            torch.compiler.reset()  # a compiled module would keep the graph of what was frozen

    def _set_rates(self, trainer: pl.Trainer) -> None:
        if not (self.warmup_steps or self.lr_floor):
            return
        for stage, group in self.staged_groups(trainer.strategy.optimizers[0]):
            # without initial_lr (ReduceLROnPlateau gives none) the peak is the highest rate so far
            rates = (group.get(PEAK, 0.0), group.get("max_lr", 0.0), group.get("initial_lr", group["lr"]))
            group[PEAK] = max(float(rate) for rate in rates)
            if stage in self._progress.thaw_steps:
                group[WARMUP] = self._progress.warm_up(stage, trainer.global_step, self.warmup_steps)
                group[FLOOR] = self.lr_floor * group[PEAK]

    # ---- end and resume

    def _undo(self, trainer: pl.Trainer) -> None:
        super()._undo(trainer)
        if self._frozen is not None:
            self._frozen.release()

    def state_dict(self) -> dict[str, Any]:
        """Return the progress, and what the schedule is, to be compared at resume."""
        made_with = self._made_with() if self._stages is not None else {}
        return {**self._progress.state_dict(), "made_with": made_with}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made.

        Raises:
            UserError: The checkpoint was made with another schedule.
        """
        if self._fitting:
            self._progress, self._resumed = Progress.from_state_dict(state_dict), state_dict["made_with"]
            if self._stages is not None:
                check_same(self._resumed, self._made_with())

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
            "freeze_from": self.freeze_from,
            "stages": list(self.stages.names),
        }
