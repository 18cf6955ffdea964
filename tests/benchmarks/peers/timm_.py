"""The pieces of timm's training script: ``freeze``, its optimizer factory, its meters, in the loop of ``train.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, freeze

from peers.job import Job, NotApplicable, Peer


class Timm(Peer):
    """Freezes modules (BatchNorm becomes ``FrozenBatchNorm2d``) and trains the rest."""

    key = "timm"
    name = "timm"
    package = "timm"
    configuration = "`timm.utils.freeze`, `create_optimizer_v2('adamw')`, the loop of its `train.py`"

    def fit(self, job: Job) -> None:
        if len(job.schedule) > 1:
            raise NotApplicable("no schedule of freezing")
        network = job.network
        if job.frozen_groups(0):
            freeze(network, ["backbone"])
        optimizer = create_optimizer_v2(network, opt="adamw", lr=job.lr, weight_decay=0.01)
        model = torch.compile(network) if job.compiled else network
        losses = AverageMeter()
        loader = job.loader()
        for _ in range(job.epochs):
            model.train()
            for step, (images, labels) in enumerate(loader):
                with torch.autocast(job.device.type, torch.bfloat16, enabled=job.precision == "bf16"):
                    loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if step % 50 == 0:  # its default log interval
                    losses.update(loss.item(), len(images))
