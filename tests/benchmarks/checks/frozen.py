"""Traps 1 and 9: what is frozen does not move, and every parameter is known by identity."""

from __future__ import annotations

from pathlib import Path

from peers.job import Job, Network, Peer
from peers.recorder import Recorder, moved, tensors
from torch import nn

from checks.verdict import Verdict, judge, small_job, thaw_at


def frozen_batch_norm(peer: Peer, folder: Path) -> Verdict:
    """Trap 1: parameters and buffers below the head are bit-identical after two epochs with validation."""
    return judge(_drift(small_job(peer, epochs=2), peer))


def after_train_call(peer: Peer, folder: Path) -> Verdict:
    """Trap 1 again: the same when the user's own code calls ``train()`` after the peer has frozen an epoch's layers."""
    return judge(_drift(small_job(peer, epochs=2, user_train=True), peer))


def _drift(job: Job, peer: Peer) -> list[str]:
    """Train the head and name what moved below it, or how BatchNorm normalised."""
    before, head = tensors(job.network.backbone), tensors(job.network.head)
    peer.fit(job)
    assert moved(head, tensors(job.network.head)), "nothing was trained"
    drifted = moved(before, tensors(job.network.backbone))
    if drifted:
        return [f"{len(drifted)} of {len(before)} frozen tensors move ({_kinds(drifted)})"]
    return ["frozen BN normalises by the batch"] if _by_batch(job) else []


def _by_batch(job: Job) -> bool:
    assert job.recorder is not None
    return any(n.startswith("backbone") for s in job.recorder.snapshots for n in s.normalising_by_batch)


def _kinds(names: list[str]) -> str:
    endings = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return ", ".join(e for e in endings if any(n.endswith(e) for n in names))


def identity(peer: Peer, folder: Path) -> Verdict:
    """Trap 9: after the thaws every parameter has one owner; frozen again, with a stale gradient, none moves.

    The head begins with a fresh BatchNorm that equals one of the backbone by value. Where a peer is told not to train
    BatchNorm (``train_bn=False``), those of the backbone may have no owner.
    """
    job = thaw_at(small_job(peer, epochs=3), 1, 2)
    job = job.but(network=Network(job.network.backbone, nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10))))
    exempt = set(_norms(job)) if peer.variant == "train_bn=False" else set()
    peer.fit(job)
    assert job.recorder is not None
    owners = {n: k for n, k in job.recorder.owners.items() if n not in exempt}
    wrong = {n: k for n, k in owners.items() if k != 1}
    problems = [f"{len(wrong)} parameters have {min(wrong.values())} or {max(wrong.values())} owners"] if wrong else []
    stuck = _stuck(job, set(owners))
    problems += [f"{len(stuck)} parameters with a gradient do not move after the thaw"] if stuck else []
    return judge(problems + _moves_when_frozen_again(peer))


def _norms(job: Job) -> list[str]:
    return [n for n, p in job.network.named_parameters() if n.startswith("backbone") and p.ndim == 1]


def _stuck(job: Job, owned: set[str]) -> list[str]:
    """Name parameters that have a gradient in the last epoch and yet are not updated."""
    assert job.recorder is not None
    first, *_, last = job.recorder.of_epoch(job.epochs - 1)
    still = set(first.weights) - set(moved(first.weights, last.weights))
    return sorted(still & first.with_gradient & owned)


def _moves_when_frozen_again(peer: Peer) -> list[str]:
    """Train all, then only the head, of the same network; name frozen weights that move (trap 1 is about BatchNorm)."""
    everything = small_job(peer, epochs=1)
    type(peer)(peer.variant).fit(everything.but(schedule={0: 0}))
    head_only = everything.but(recorder=Recorder())
    weights = {n: p for n, p in head_only.network.backbone.named_parameters() if p.ndim > 1}
    before = {n: p.detach().clone() for n, p in weights.items()}
    type(peer)(peer.variant).fit(head_only)
    drifted = moved(before, weights)
    return [f"frozen again after training, {len(drifted)} convolutions still move"] if drifted else []
