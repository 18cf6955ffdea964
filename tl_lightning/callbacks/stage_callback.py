"""What callbacks that work by stage share: the staged module, and one optimizer whose groups are split by stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BaseFinetuning, Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import Optimizer

from tl_lightning.backbones import Stages
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.optim import (
    effective_lrs,
    expand_schedulers,
    install_lr_scale,
    match_state_by_name,
    split_groups_by_stage,
)


def callbacks_of(trainer: pl.Trainer) -> list[Callback]:
    """Return all callbacks of a trainer (a connector sets them, which type checkers do not see)."""
    return trainer.callbacks  # type: ignore[attr-defined]


def staged_module(pl_module: nn.Module, attribute: str) -> nn.Module:
    """Return the module that an attribute names, or the whole module for ``""``; a compiled one is unwrapped.

    Raises:
        UserError: There is no such attribute, or it is no module.
    """
    try:
        module = pl_module.get_submodule(attribute)
    except AttributeError:
        names = [name for name, child in pl_module.named_children() if any(True for _ in child.parameters())]
        error = unknown_name("attribute", attribute, names)
        raise UserError(f"{error} (submodules of {type(pl_module).__name__}: {', '.join(names) or 'none'})") from None
    return module._orig_mod if isinstance(module, torch._dynamo.OptimizedModule) else module


class StageCallback(Callback):
    """Base of the callbacks that treat a module by stages.

    When the strategy has called ``configure_optimizers`` (whatever form it returns), the groups of the one optimizer
    are split by stage and named, its schedulers follow, rates by stage are applied in the step alone, and state is
    restored by parameter name. Several callbacks share this; nothing is stored on the LightningModule.

    Args:
        attribute: Name of the trained submodule; ``""`` for the whole LightningModule.
        stages: Its stages; by default found by tracing, or, for a model that cannot be traced, the paths of its
            modules, shallow to deep.
    """

    def __init__(self, attribute: str, stages: Sequence[str] | Stages | None) -> None:
        self.attribute = attribute
        self._given = stages
        self._stages: Stages | None = None
        self._stage_of_id: dict[int, int] = {}
        self._logged_step = -1

    @property
    def stages(self) -> Stages:
        """The stages of the module in the present fit."""
        if self._stages is None:
            raise RuntimeError(f"{type(self).__name__} knows its stages only once a fit has been set up")
        return self._stages

    @property
    def state_key(self) -> str:
        """Tell callbacks of the same class on different attributes apart in a checkpoint."""
        return self._generate_state_key(attribute=self.attribute)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work and make sure that the optimizer will be split."""
        if stage != "fit":
            return
        _check_company(self, trainer)
        _check_strategy(trainer)
        self._stages, self._logged_step = None, -1
        # what these hooks freeze or replace must be seen, and they run behind this one
        postponed = is_overridden("configure_model", pl_module) or is_overridden("setup", pl_module)
        if not postponed:
            self.resolve(trainer, pl_module)
        _OptimizerSetup.install(trainer)

    def resolve(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the stages; called when the module exists, at the latest before the optimizer is built."""
        module = staged_module(pl_module, self.attribute)
        partners = [self, *(c for c in _others(self, trainer) if c.attribute == self.attribute)]
        self._stages = find_stages(module, next((c._given for c in partners if c._given is not None), None))
        stage = self._stages.parameter_stage()
        self._stage_of_id = {id(p): stage[name] for name, p in module.named_parameters()}

    def before_optimizer(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called before ``configure_optimizers``, after a DDP strategy has wrapped the module."""

    def after_optimizer(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Called when the groups have been split."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let schedulers follow an optimizer whose state was saved with its groups in another order."""
        optimizer = the_optimizer(trainer)
        order, count = getattr(optimizer, "loaded_group_order", None) or ([], 0)
        optimizer.loaded_group_order = None  # type: ignore[attr-defined]
        if order != list(range(count)):
            for config in trainer.lr_scheduler_configs:
                expand_schedulers(config.scheduler, order, count)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate that every group has in this step, as ``lr/<group>``."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not trainer.loggers or not every or (step + 1) % every or step == self._logged_step:
            return
        self._logged_step = step
        if self is next(c for c in callbacks_of(trainer) if isinstance(c, StageCallback)):
            rates = {f"lr/{name}": rate for name, rate in effective_lrs(the_optimizer(trainer)).items()}
            for logger in trainer.loggers:
                logger.log_metrics(rates, step=step)

    def staged_groups(self, optimizer: Optimizer) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the parameter groups of the staged module with their stages."""
        for group in optimizer.param_groups:
            stage = self._stage_of_id.get(id(group["params"][0]))
            if stage is not None:
                yield stage, group

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the trainer and the module as they were."""
        if stage == "fit":
            self._undo(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the trainer and the module as they were."""
        self._undo(trainer)

    def _undo(self, trainer: pl.Trainer) -> None:
        _OptimizerSetup.remove(trainer.strategy)


def find_stages(module: nn.Module, given: Sequence[str] | Stages | None) -> Stages:
    """Return the stages of a module: those given, those of the named modules, or those of its graph."""
    if isinstance(given, Stages):
        return given
    return Stages(module) if given is None else Stages.from_modules(module, given)


def the_optimizer(trainer: pl.Trainer) -> Optimizer:
    """Return the one optimizer of a fit, without Lightning's wrapper.

    Raises:
        UserError: There is none, or there are several.
    """
    optimizers = [o.optimizer if isinstance(o, LightningOptimizer) else o for o in trainer.strategy.optimizers]
    if len(optimizers) != 1 or not optimizers[0].param_groups:
        what = f"{len(optimizers)} optimizers" if len(optimizers) > 1 else "none"
        raise UserError(f"training by stage needs exactly one optimizer from configure_optimizers, not {what}")
    return optimizers[0]


class _OptimizerSetup:
    """Stands in for ``strategy.setup_optimizers``: Lightning reads the forms, this works on what it read."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    @classmethod
    def install(cls, trainer: pl.Trainer) -> None:
        if not isinstance(vars(trainer.strategy).get("setup_optimizers"), cls):
            vars(trainer.strategy)["setup_optimizers"] = cls(trainer.strategy)

    @staticmethod
    def remove(strategy: Strategy) -> None:
        vars(strategy).pop("setup_optimizers", None)

    def __call__(self, trainer: pl.Trainer) -> None:
        callbacks = [c for c in callbacks_of(trainer) if isinstance(c, StageCallback)]
        for callback in callbacks:
            if callback._stages is None:
                callback.resolve(trainer, trainer.lightning_module)
            callback.before_optimizer(trainer, trainer.lightning_module)
        type(self.strategy).setup_optimizers(self.strategy, trainer)
        optimizer = the_optimizer(trainer)
        for callback in callbacks:
            self._split(optimizer, trainer, callback)
        match_state_by_name(optimizer)
        install_lr_scale(optimizer)
        for callback in callbacks:
            callback.after_optimizer(trainer, trainer.lightning_module, optimizer)

    def _split(self, optimizer: Optimizer, trainer: pl.Trainer, callback: StageCallback) -> None:
        root, count = trainer.lightning_module, len(optimizer.param_groups)
        source = split_groups_by_stage(optimizer, root, callback.stages, staged_module(root, callback.attribute))
        if source != list(range(count)):
            for config in self.strategy.lr_scheduler_configs:
                expand_schedulers(config.scheduler, source, count)


def _others(callback: StageCallback, trainer: pl.Trainer) -> list[StageCallback]:
    return [c for c in callbacks_of(trainer) if isinstance(c, StageCallback) and c is not callback]


def _check_company(callback: StageCallback, trainer: pl.Trainer) -> None:
    """Refuse other callbacks that would work on the same parameters."""
    name = type(callback).__name__
    for other in callbacks_of(trainer):
        if isinstance(other, BaseFinetuning):
            raise UserError(f"{name} and {type(other).__name__} both freeze and thaw parameters: remove one of them")
        if isinstance(getattr(other, "_swa_lrs", None), list):
            raise UserError(
                f"{name} splits the groups of the optimizer: give {type(other).__name__} one swa_lrs, no list"
            )
    for other in _others(callback, trainer):
        if _overlap(callback.attribute, other.attribute):
            if type(other) is type(callback):
                raise UserError(f"two {name} callbacks work on the same parameters of {callback.attribute!r}: keep one")
            if other.attribute != callback.attribute:
                raise UserError(
                    f"{name} works on {callback.attribute!r} and {type(other).__name__} on {other.attribute!r}, which "
                    "overlap: give both the same attribute"
                )


def _overlap(one: str, other: str) -> bool:
    return one == other or not one or not other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _check_strategy(trainer: pl.Trainer) -> None:
    known = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if not known or isinstance(trainer.strategy, DeepSpeedStrategy):  # which is a DDPStrategy
        raise UserError(
            f"training by stage works on one device and with DDP, not with {type(trainer.strategy).__name__}: "
            "use strategy='auto' or 'ddp'"
        )
