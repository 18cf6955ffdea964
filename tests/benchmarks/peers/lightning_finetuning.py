"""Lightning's own ``BackboneFinetuning``."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from lightning.pytorch.callbacks import BackboneFinetuning, Callback

from peers.job import NEVER, Job, NotApplicable
from peers.lightning_base import STRATEGIES, LightningPeer, PlainModule


class HeadFirst(PlainModule):
    """Gives the optimizer the head alone where the backbone is frozen at first, as the callback's docstring does."""

    def configure_optimizers(self) -> dict[str, Any]:
        if self.job.frozen_groups(0):
            self.backbone.requires_grad_(False)
        return super().configure_optimizers()


class LightningFinetuning(LightningPeer):
    """Freezes ``backbone`` as a whole and thaws it as a whole at one epoch."""

    key = "lightning"
    name = "Lightning BackboneFinetuning"
    configuration = (
        "`BackboneFinetuning(train_bn=False, should_align=False, lambda_func=constant)`, the optimizer made with the "
        "head alone, DDP with `find_unused_parameters=True`"
    )
    variants = MappingProxyType({"9": ("train_bn=False", "train_bn=True"), "7": STRATEGIES})
    module_class = HeadFirst
    gradual = False

    def callbacks(self, job: Job) -> list[Callback]:
        if job.frozen_groups(0) == 0:
            return []
        return [
            BackboneFinetuning(
                unfreeze_backbone_at_epoch=self._thaw(job),
                backbone_initial_ratio_lr=job.decay,
                backbone_initial_lr=0.2 * job.lr if job.warmup_steps else None,
                lambda_func=_doubling if job.warmup_steps else _constant,
                should_align=bool(job.warmup_steps),
                train_bn=self.variant == "train_bn=True",
            )
        ]

    def strategy(self, job: Job) -> str:
        return self.variant if self.variant in STRATEGIES else STRATEGIES[0]

    @staticmethod
    def _thaw(job: Job) -> int:
        """Return the one epoch at which all thaws; later steps of a schedule have no counterpart."""
        last = len(job.groups) - 1
        for epoch in sorted(job.schedule):
            if job.schedule[epoch] not in (0, last):
                raise NotApplicable("thaws the backbone as a whole only")
        return min((epoch for epoch, frozen in job.schedule.items() if frozen == 0), default=NEVER)


def _constant(epoch: int) -> float:
    return 1.0


def _doubling(epoch: int) -> float:
    return 2.0
