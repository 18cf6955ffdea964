"""What the peers that are Lightning callbacks share: one plain LightningModule and one Trainer."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, LearningRateFinder, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.optim import Optimizer

from peers.job import Job, Peer

STRATEGIES = ("ddp_find_unused_parameters_true", "ddp")


class PlainModule(pl.LightningModule):
    """A LightningModule as its documentation shows it: a backbone, a head, one optimizer."""

    trainable_only = True  # as BaseFinetuning's documentation asks for

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.backbone = job.network.backbone
        self.head = job.network.head
        self.lr = job.lr

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def on_train_epoch_start(self) -> None:
        if self.job.user_train:
            self.train()

    def configure_optimizers(self) -> dict[str, Any]:
        groups = self.job.optimizer_groups(self.trainable_only)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=0.01, fused=True)
        if self.job.scheduler is None:
            return {"optimizer": optimizer}
        config = {"scheduler": self.job.scheduler(optimizer), "interval": "step", "monitor": "train_loss"}
        if isinstance(config["scheduler"], torch.optim.lr_scheduler.ReduceLROnPlateau):
            config["interval"] = "epoch"
        return {"optimizer": optimizer, "lr_scheduler": config}


class Observer(Callback):
    """Fills the recorder of a job."""

    def __init__(self, peer: LightningPeer, job: Job) -> None:
        self.peer, self.job = peer, job

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.job.recorder is not None:
            self.job.recorder.first_moments = _moments(trainer.optimizers[0], self.job.network)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        finding = any(isinstance(c, _Finder) and c.searching for c in trainer.callbacks)  # type: ignore[attr-defined]
        if self.job.recorder is not None and not finding:
            rates = self._by_name(self.peer.rates(optimizer))
            step = trainer.fit_loop.epoch_loop.batch_idx
            self.job.recorder.step(self.job.network, rates, trainer.current_epoch, step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.job.recorder is not None:
            self.job.recorder.epoch_end(self.job.network)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.job.recorder is not None:
            optimizer, network = trainer.optimizers[0], self.job.network
            self.job.recorder.last_moments = _moments(optimizer, network)
            held = [id(p) for group in optimizer.param_groups for p in group["params"]]
            self.job.recorder.owners = {n: held.count(id(p)) for n, p in network.named_parameters()}

    def _by_name(self, rates: dict[int, float]) -> dict[str, float]:
        return {n: rates[id(p)] for n, p in self.job.network.named_parameters() if id(p) in rates}


class LightningPeer(Peer):
    """Trains with ``lightning.pytorch.Trainer``; subclasses say with which callbacks."""

    package = "lightning"
    module_class: type[PlainModule] = PlainModule

    def callbacks(self, job: Job) -> list[Callback]:
        """Return what freezes and thaws, and whatever it needs beside it."""
        raise NotImplementedError

    def checkpoint(self, job: Job) -> Callback | None:
        """Return the callback that writes the job's checkpoints."""
        if job.folder is None:
            return None
        every = {"every_n_train_steps": job.checkpoint_steps} if job.checkpoint_steps else {"every_n_epochs": 1}
        return ModelCheckpoint(job.folder, filename="{step}", save_top_k=-1, monitor=None, **every)  # type: ignore[arg-type]

    def logger(self, job: Job) -> Logger | bool:
        """Return the logger, by default none."""
        return False

    def rates(self, optimizer: Optimizer) -> dict[int, float]:
        """Return the rate of the coming update by the identity of the parameter."""
        return {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}

    def strategy(self, job: Job) -> str:
        """Return the strategy for several processes."""
        return "ddp"

    def resume(self, trainer: pl.Trainer, job: Job) -> Path | None:
        """Return the checkpoint to give to ``fit``."""
        return job.resume

    def fit(self, job: Job) -> None:
        quiet()
        module: nn.Module = self.module_class(job)
        if job.compiled:
            module = torch.compile(module, backend="aot_eager" if job.device.type == "cpu" else "inductor")  # type: ignore[assignment]
        trainer = self.trainer(job)
        trainer.fit(
            module,  # type: ignore[arg-type]
            job.loader(),
            job.validation_loader(),
            ckpt_path=self.resume(trainer, job),
            weights_only=False if job.resume else None,
        )

    def trainer(self, job: Job) -> pl.Trainer:
        """Return the Trainer of a job, without the parts that only print."""
        checkpoint = self.checkpoint(job)
        callbacks = [*self.callbacks(job), *_extra(job), *([checkpoint] if checkpoint else [])]
        if job.recorder is not None:
            callbacks.append(Observer(self, job))
        return pl.Trainer(
            max_epochs=job.epochs,
            accelerator="gpu" if job.device.type == "cuda" else "cpu",
            devices=job.processes,
            strategy=self.strategy(job) if job.processes > 1 else "auto",
            precision="bf16-mixed" if job.precision == "bf16" else "32-true",
            callbacks=callbacks,
            logger=self.logger(job),
            enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if job.validation else 0,
        )


class _Finder(LearningRateFinder):
    """The learning-rate finder, which knows when it is searching."""

    searching = False

    def lr_find(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.searching = True
        super().lr_find(trainer, pl_module)
        self.searching = False


def _extra(job: Job) -> list[Callback]:
    if job.extra == "lr_find":
        return [_Finder(min_lr=1e-5, max_lr=1e-1, num_training_steps=20, attr_name="lr")]
    if job.extra in ("swa", "swa with a list of rates"):
        rates = job.lr / 2 if job.extra == "swa" else [job.rate(g) / 2 for g in reversed(range(len(job.groups)))]
        return [StochasticWeightAveraging(swa_lrs=rates, swa_epoch_start=job.epochs - 2, annealing_epochs=1)]
    return []


def _moments(optimizer: Optimizer, network: nn.Module) -> dict[str, Tensor]:
    names = {id(p): name for name, p in network.named_parameters()}
    return {names[id(p)]: s["exp_avg"].clone() for p, s in optimizer.state.items() if s and id(p) in names}


def quiet() -> None:
    """Keep advice about workers, loggers and the like out of a table of results."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
