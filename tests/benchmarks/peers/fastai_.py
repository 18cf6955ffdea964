"""fastai's ``Learner`` with ``freeze_to`` between its fits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import fastai.callback.schedule  # noqa: F401  (adds fit_one_cycle)
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import Adam
from torch import Tensor, nn

from peers.job import Job, NotApplicable, Peer, swap_equal_shapes


class FastAI(Peer):
    """Splits the model into parameter groups and freezes by ``Learner.freeze_to``."""

    key = "fastai"
    name = "fastai"
    package = "fastai"
    configuration = (
        "`Learner(splitter=..., train_bn=False, cbs=BnFreeze)`, `freeze_to` before each fit of a phase, "
        "`save(with_opt=True)` and `fit(start_epoch=...)` for resuming, `distrib_ctx` for processes"
    )

    def fit(self, job: Job) -> None:
        if job.checkpoint_steps is not None:
            raise NotApplicable("no checkpoints within an epoch")
        if job.extra is not None:
            raise NotApplicable(f"no {job.extra} of Lightning's kind")
        learner = self._learner(job)
        if job.processes > 1:
            import fastai.distributed  # noqa: F401  (adds distrib_ctx)

            with learner.distrib_ctx(cpu=True, sync_bn=False):
                self._fit_phases(learner, job)
        else:
            self._fit_phases(learner, job)

    def _learner(self, job: Job) -> Learner:
        def splitter(model: nn.Module) -> list[list[nn.Parameter]]:
            parameters = dict(job.network.named_parameters())  # model may be a compiled one, with other names
            named = [job.group_names(g) for g in range(len(job.groups))]
            groups = [[parameters[n] for n in group] for group in named]
            return [swap_equal_shapes(group) if job.swap else group for group in groups]

        empty = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.empty(0)), 1)
        callbacks: list[Any] = [BnFreeze]
        if job.precision == "bf16":
            callbacks.append(MixedPrecision(amp_mode=AMPMode.BF16))
        learner = Learner(
            DataLoaders(job.loader(), job.validation_loader() or empty, device=job.device),
            job.network,
            loss_func=F.cross_entropy,
            opt_func=Adam,
            splitter=splitter,
            lr=job.lr,
            wd=0.01,
            train_bn=False,
            path=job.folder or Path("."),
            model_dir=".",
            cbs=callbacks,
        )
        learner.remove_cbs([c for c in learner.cbs if c.name in ("progress", "recorder")])
        if job.recorder is not None:
            learner.add_cb(Observer(job))
        if job.user_train:
            learner.add_cb(UserTrain())
        if job.compiled:
            learner.model = torch.compile(job.network, backend="aot_eager" if job.device.type == "cpu" else "inductor")
        return learner

    def _fit_phases(self, learner: Learner, job: Job) -> None:
        """Run one fit for every part of the schedule, as a script that is started anew after a stop would do."""
        done = _epochs_done(job.resume)
        starts = [*sorted(e for e in job.schedule if e < job.epochs), job.epochs]
        rates = [job.rate(g) for g in range(len(job.groups))]
        for start, end in itertools.pairwise(starts):
            if end <= done:
                continue
            if start == done and job.resume is not None:
                self._load(learner, job.resume)
            learner.freeze_to(job.schedule[start])  # clears the moments, also in a run that is not stopped
            if start < done and job.resume is not None:
                self._load(learner, job.resume)
            learner.epochs_before = start
            self._fit_phase(learner, job, end - start, rates, max(0, done - start))

    @staticmethod
    def _load(learner: Learner, checkpoint: Path) -> None:
        if learner.opt is None:
            learner.create_opt()
        learner.load(checkpoint.with_suffix(""), with_opt=True)

    def _fit_phase(self, learner: Learner, job: Job, epochs: int, rates: list[float], start: int) -> None:
        callbacks = [Saver(job)] if job.folder is not None else []
        if job.warmup_steps or job.scheduler is not None:
            learner.fit_one_cycle(epochs, lr_max=rates, cbs=callbacks, start_epoch=start)
        else:
            learner.fit(epochs, lr=rates, cbs=callbacks, start_epoch=start)

    def checkpoints(self, job: Job) -> list[Path]:
        assert job.folder is not None
        return sorted(job.folder.glob("*.pth"), key=_epochs_done)


class Observer(Callback):
    """Fills the recorder of a job."""

    order = 100  # after every other callback of the same event

    def __init__(self, job: Job) -> None:
        self.job = job

    def before_fit(self) -> None:
        if self.job.recorder is not None and not self.job.recorder.snapshots:
            self.job.recorder.first_moments = self._moments()

    def before_step(self) -> None:
        if self.job.recorder is not None:
            rates = {
                id(p): float(h["lr"]) for ps, h in zip(self.opt.param_lists, self.opt.hypers, strict=True) for p in ps
            }
            by_name = {n: rates[id(p)] for n, p in self.job.network.named_parameters()}
            self.job.recorder.step(self.job.network, by_name, self.learn.epochs_before + self.epoch, self.iter)

    def after_train(self) -> None:
        if self.job.recorder is not None:
            self.job.recorder.epoch_end(self.job.network)

    def after_fit(self) -> None:
        if self.job.recorder is not None:
            held = [id(p) for ps in self.opt.param_lists for p in ps]
            self.job.recorder.owners = {n: held.count(id(p)) for n, p in self.job.network.named_parameters()}
            self.job.recorder.last_moments = self._moments()

    def _moments(self) -> dict[str, Tensor]:
        names = {id(p): n for n, p in self.job.network.named_parameters()}
        return {names[id(p)]: s["grad_avg"].clone() for p, s in self.opt.state.items() if "grad_avg" in s}


class Saver(Callback):
    """Saves model and optimizer at the end of every epoch, as ``SaveModelCallback(every_epoch=True)`` does."""

    order = 90

    def __init__(self, job: Job) -> None:
        self.job = job

    def after_epoch(self) -> None:
        self.learn.save(f"epoch={self.learn.epochs_before + self.epoch + 1}", with_opt=True)


class UserTrain(Callback):
    """The user's own code calls ``train()`` when an epoch has started."""

    order = 99

    def before_train(self) -> None:
        self.model.train()


def _epochs_done(checkpoint: Path | None) -> int:
    return int(checkpoint.stem.split("=")[-1]) if checkpoint is not None else 0
