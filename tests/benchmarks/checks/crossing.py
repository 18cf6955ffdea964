"""Trap 10: features that meet: torch.compile, activation checkpointing, Grad-CAM while training."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from peers.job import Job, Network, NotApplicable, Peer
from peers.recorder import moved, tensors
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from checks.verdict import Verdict, brief, judge, small_job, thaw_at


class Checkpointed(nn.Sequential):
    """Computes the activations of the backbone anew in the backward pass."""

    def forward(self, image: Tensor) -> Tensor:
        return checkpoint(super().forward, image, use_reentrant=False)


def crossing(peer: Peer, folder: Path) -> Verdict:
    """Trap 10: compiled or checkpointed, frozen parts get no gradient and thawed ones do and move."""
    problems = []
    for what in ("compile", "activation checkpointing"):
        job = thaw_at(small_job(peer, epochs=4, compiled=what == "compile"), 1, 2)
        if what != "compile":
            job = job.but(network=_checkpointed(job.network))
        torch._dynamo.reset()
        try:
            type(peer)(peer.variant).fit(job)
        except Exception as error:
            problems.append(f"{what}: {brief(error)}")
            continue
        problems += [f"{what}: {problem}" for problem in _gradients(job)]
    return judge(problems)


def gradcam(peer: Peer, folder: Path) -> Verdict:
    """Trap 10 again: a fit with a Grad-CAM panel in every epoch is bit-identical to one without."""
    if peer.package != "tl_lightning":
        raise NotApplicable("has no Grad-CAM")
    results = {}
    for extra in (None, "gradcam"):
        torch.manual_seed(0)
        job = thaw_at(small_job(peer, epochs=3, folder=folder / str(extra), extra=extra), 1, 2)
        type(peer)(peer.variant).fit(job)
        results[extra] = {**tensors(job.network), "random state": torch.get_rng_state()}
    return judge([f"{name} differs" for name in moved(results[None], results["gradcam"])][:3])


def _checkpointed(network: Network) -> Network:
    return Network(Checkpointed(OrderedDict(network.backbone.named_children())), network.head)


def _gradients(job: Job) -> list[str]:
    assert job.recorder is not None
    problems = []
    weights = {n for n, p in job.network.named_parameters() if p.ndim > 1}  # trap 1 is about BatchNorm
    for snapshot in job.recorder.snapshots:
        frozen = {n for g in range(job.frozen_groups(snapshot.epoch)) for n in job.group_names(g)}
        if frozen & weights & snapshot.with_gradient:
            problems.append(f"frozen parameters get gradients in epoch {snapshot.epoch}")
        missing = weights - frozen - snapshot.with_gradient
        if missing:
            problems.append(f"{len(missing)} thawed weights get no gradient in epoch {snapshot.epoch}")
    return list(dict.fromkeys(problems))[:2]
