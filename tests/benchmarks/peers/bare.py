"""A bare PyTorch loop: no framework. What is frozen runs in every epoch, in eval mode and without a graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from peers.job import Job, Peer


class Bare(Peer):
    """The loop that one would write by hand."""

    key = "bare"
    name = "bare PyTorch"
    package = "torch"
    configuration = "a loop by hand: frozen part in eval mode under `torch.no_grad()`, fused AdamW"
    channels_last = False

    def fit(self, job: Job) -> None:
        network, frozen = job.network, job.frozen_groups(0) > 0
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        network.backbone.requires_grad_(not frozen)
        optimizer = torch.optim.AdamW(job.optimizer_groups(trainable_only=True), fused=True, weight_decay=0.01)
        forward = torch.compile(network) if job.compiled else network
        network.train()
        network.backbone.train(not frozen)
        loader = job.loader()
        for _ in range(job.epochs):
            for images, labels in loader:
                if self.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                with torch.autocast(job.device.type, torch.bfloat16, enabled=job.precision == "bf16"):
                    loss = F.cross_entropy(self._logits(forward, job, images, frozen), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @staticmethod
    def _logits(forward: torch.nn.Module, job: Job, images: Tensor, frozen: bool) -> Tensor:
        if not frozen:
            return forward(images)
        with torch.no_grad():
            features = job.network.backbone(images)
        return job.network.head(features)


class BareChannelsLast(Bare):
    """The same with images and weights in the channels-last layout."""

    key = "bare-channels-last"
    name = "bare PyTorch, channels last"
    channels_last = True
