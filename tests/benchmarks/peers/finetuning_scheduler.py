"""finetuning-scheduler's ``FinetuningScheduler`` with an explicit schedule."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint
from lightning.pytorch.callbacks import Callback

from peers.job import Job
from peers.lightning_base import STRATEGIES, LightningPeer

TRACKING = ("frozen_bn_track_running_stats=True", "frozen_bn_track_running_stats=False")
RESUMING = ("trainer.ckpt_path = ...", "fit(ckpt_path=...)")


class FinetuningSchedulerPeer(LightningPeer):
    """Thaws the groups of a schedule at given epochs."""

    key = "finetuning-scheduler"
    name = "finetuning-scheduler"
    package = "finetuning_scheduler"
    configuration = (
        "`FinetuningScheduler` with an explicit schedule, `epoch_transitions_only=True`, `restore_best=False`, "
        "`apply_lambdas_new_pgs=True`, resumed by `trainer.ckpt_path = ...`, DDP with `find_unused_parameters=True`"
    )
    variants = MappingProxyType({"1": TRACKING, "1b": TRACKING, "2": RESUMING, "3": RESUMING, "7": STRATEGIES})

    def callbacks(self, job: Job) -> list[Callback]:
        if job.frozen_groups(0) == 0:
            return []
        logging.getLogger("finetuning_scheduler").setLevel(logging.ERROR)
        callbacks: list[Callback] = [
            FinetuningScheduler(
                ft_schedule=self._schedule(job),
                epoch_transitions_only=True,
                restore_best=False,
                apply_lambdas_new_pgs=True,
                base_max_lr=job.lr,
                logging_level=logging.ERROR,
                frozen_bn_track_running_stats=self.variant != TRACKING[1],
                log_dir=job.folder,
            )
        ]
        if job.folder is None:
            callbacks.append(FTSCheckpoint(save_top_k=0, monitor=None))
        return callbacks

    def checkpoint(self, job: Job) -> Callback | None:
        if job.folder is None or job.frozen_groups(0) == 0:
            return super().checkpoint(job)
        every = {"every_n_train_steps": job.checkpoint_steps} if job.checkpoint_steps else {"every_n_epochs": 1}
        return FTSCheckpoint(
            job.folder, filename="{step}", save_top_k=-1, monitor=None, save_on_train_epoch_end=True, **every
        )  # type: ignore[arg-type]

    def strategy(self, job: Job) -> str:
        return self.variant if self.variant in STRATEGIES else STRATEGIES[0]

    def resume(self, trainer: pl.Trainer, job: Job) -> Path | None:
        if self.variant != RESUMING[1]:
            trainer.ckpt_path = job.resume  # all that the callback looks at, and fit() does not set it in time
            return None
        return job.resume

    def fit(self, job: Job) -> None:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # it prints its schedule
            super().fit(job)

    @staticmethod
    def _schedule(job: Job) -> dict[int, dict[str, Any]]:
        """Return the phases: at each the groups that thaw, their rate, and the epoch at which the next one begins."""
        epochs = sorted(job.schedule)
        phases: dict[int, dict[str, Any]] = {}
        above = len(job.groups)
        for phase, epoch in enumerate(epochs):
            thawed = range(job.schedule[epoch], above)
            above = job.schedule[epoch]
            following = epochs[phase + 1] if phase + 1 < len(epochs) else job.epochs
            phases[phase] = {
                "params": [name for group in thawed for name in job.group_names(group)],
                "max_transition_epoch": following,
                "lr": job.rate(above),
            }
            if phase and job.warmup_steps:
                phases[phase]["new_lr_scheduler"] = _warmup(job.warmup_steps)
        return phases


def _warmup(steps: int) -> dict[str, Any]:
    return {
        "lr_scheduler_init": {
            "class_path": "torch.optim.lr_scheduler.LinearLR",
            "init_args": {"start_factor": 0.1, "total_iters": steps},
        },
        "pl_lrs_cfg": {"interval": "step", "frequency": 1, "name": "warmup"},
    }
