"""This package's callbacks, in the same plain LightningModule as Lightning's own."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.optim import Optimizer

from peers.job import Job
from peers.lightning_base import LightningPeer, PlainModule
from tl_lightning.callbacks import DiscriminativeLR, ProgressiveUnfreezing
from tl_lightning.callbacks.gradcam import GradCAMLogger
from tl_lightning.optim.lr_scale import effective_lr


class AllParameters(PlainModule):
    """Gives the optimizer all parameters, frozen ones too, at one rate: the callbacks split them."""

    trainable_only = False

    def __init__(self, job: Job) -> None:
        super().__init__(job.but(decay=1.0))


class Ours(LightningPeer):
    """``ProgressiveUnfreezing`` by stages, ``DiscriminativeLR`` for the rates."""

    key = "ours"
    name = "tl_lightning"
    package = "tl_lightning"
    configuration = "`ProgressiveUnfreezing` and `DiscriminativeLR` in an ordinary LightningModule, `strategy='ddp'`"
    module_class = AllParameters

    def callbacks(self, job: Job) -> list[Callback]:
        callbacks: list[Callback] = []
        stages = [path for group in job.groups for path in group]
        first = [len(group) for group in job.groups]
        depths = {epoch: sum(first[:frozen]) for epoch, frozen in job.schedule.items()}
        if any(depths.values()):
            callbacks.append(
                ProgressiveUnfreezing(
                    depths,
                    attribute="",
                    stages=stages,
                    warmup_steps=job.warmup_steps,
                    lr_floor=0.1 if job.warmup_steps else 0.0,
                )
            )
        if job.decay != 1.0:
            rates = {path: job.rate(g) / job.lr for g, group in enumerate(job.groups) for path in group}
            callbacks.append(DiscriminativeLR(rates=rates, attribute="", stages=stages))
        if job.extra == "gradcam":
            images, labels = job.train
            callbacks.append(GradCAMLogger(images[:4].clamp(0, 1), labels[:4]))
        return callbacks

    def logger(self, job: Job) -> Logger | bool:
        return TensorBoardLogger(job.folder) if job.extra == "gradcam" else False  # type: ignore[arg-type]

    def rates(self, optimizer: Optimizer) -> dict[int, float]:
        return {id(p): float(effective_lr(group)) for group in optimizer.param_groups for p in group["params"]}
