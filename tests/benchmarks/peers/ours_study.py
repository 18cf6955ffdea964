"""This package as its studies use it: TransferModule, its data module, cached activations below the boundary."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from peers.augment import FlipAndShift
from peers.job import Job, Peer
from peers.lightning_base import quiet
from tl_lightning.backbones import Stages
from tl_lightning.callbacks import BatchAugmentation, FoldedPrefix, FreezeAudit, ProgressiveUnfreezing
from tl_lightning.features import CachedDataModule
from tl_lightning.tasks import TransferModule


class OursStudy(Peer):
    """Trains on the activations at the freeze boundary where the images do not change, on images elsewhere."""

    key = "ours-study"
    name = "tl_lightning"
    package = "tl_lightning"
    configuration = (
        "`TransferModule` with `ProgressiveUnfreezing`, `FreezeAudit`, and `CachedDataModule` or, with augmentation, "
        "`FoldedPrefix`, as the studies"
    )

    def fit(self, job: Job) -> None:
        quiet()
        module = TransferModule(
            job.network,
            _classes(job.network),
            mean=job.normalisation[0],
            std=job.normalisation[1],
            lr=job.lr,
            weight_decay=0.01,
            schedule="constant",
            warmup_fraction=0.0,
        )
        callbacks: list[Callback] = []
        data: pl.LightningDataModule | None = job.data
        if job.frozen_groups(0):
            depth = first_head_stage(module.stages)
            callbacks = [ProgressiveUnfreezing(depth), FreezeAudit()]
            if job.augment is not None:
                callbacks.append(FoldedPrefix())
            elif job.data is not None:
                data = CachedDataModule(job.data, module, module.stages.boundary_before(depth))
        if isinstance(job.augment, FlipAndShift):
            callbacks.append(BatchAugmentation(**job.augment.options))
        trained: nn.Module = torch.compile(module) if job.compiled else module  # type: ignore[assignment]
        trainer = pl.Trainer(
            max_epochs=job.epochs,
            accelerator="gpu" if job.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if job.precision == "bf16" else "32-true",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        trainer.fit(trained, data if data is not None else job.loader())  # type: ignore[arg-type]


def first_head_stage(stages: Stages) -> int:
    """Return the first stage of which the parameters belong to the network's head."""
    below = [stage for name, stage in stages.parameter_stage().items() if name.startswith("backbone.")]
    first = min(stage for name, stage in stages.parameter_stage().items() if name.startswith("head."))
    assert max(below) < first, "a stage spans the freeze boundary"
    return first


def _classes(network: nn.Module) -> int:
    return [m for m in network.modules() if isinstance(m, nn.Linear)][-1].out_features
