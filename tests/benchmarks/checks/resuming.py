"""Traps 2, 3 and 4: a resumed run goes on as one that was never stopped."""

from __future__ import annotations

from pathlib import Path

import torch
from peers.job import Job, NotApplicable, Peer
from peers.recorder import Recorder, moved, tensors
from torch.optim import Optimizer

from checks.verdict import Verdict, brief, judge, small_job, small_network, thaw_at


def resume_at_epochs(peer: Peer, folder: Path) -> Verdict:
    """Trap 2: resumed before, at and after each thaw, state in every step and the final weights are the same."""
    job = thaw_at(small_job(peer, epochs=4, folder=folder / "whole", scheduler=_exponential), 1, 2)
    peer.fit(job)
    saved = peer.checkpoints(job)
    problems = []
    for done, checkpoint in enumerate(saved[: job.epochs - 1], start=1):
        resumed = _fresh(job, checkpoint, folder / f"from{done}")
        try:
            type(peer)(peer.variant).fit(resumed)
        except NotApplicable:
            raise
        except Exception as error:
            problems.append(f"after epoch {done}: {brief(error)}")
            continue
        found = _differences(job, resumed)
        if found:
            problems.append(f"after epoch {done}: {', '.join(found)} differ")
    return judge(problems)


def resume_in_epoch(peer: Peer, folder: Path) -> Verdict:
    """Trap 3: at the first batch after a stop in mid-epoch, all is as it was."""
    job = thaw_at(small_job(peer, epochs=4, folder=folder / "whole", checkpoint_steps=2), 1, 2)
    peer.fit(job)
    problems = []
    for step in (2, 6, 10):  # in mid-epoch before, in and after the thaws
        checkpoint = next(path for path in peer.checkpoints(job) if path.stem == f"step={step}")
        resumed = _fresh(job, checkpoint, folder / f"from{step}")
        try:
            type(peer)(peer.variant).fit(resumed)
            found = _first_differences(job, resumed)
        except Exception as error:
            found = [brief(error)]
        if found:
            problems.append(f"step {step}: {', '.join(found)}")
    return judge(problems)


def optimizer_state(peer: Peer, folder: Path) -> Verdict:
    """Trap 4: with equal-sized parameters in another order, moments reach their own, or there is an error."""
    job = thaw_at(small_job(peer, epochs=3, folder=folder / "whole"), 1, 2)
    peer.fit(job)
    assert job.recorder is not None
    resumed = _fresh(job, peer.checkpoints(job)[-1], folder / "swapped").but(swap=True, epochs=job.epochs + 1)
    try:
        type(peer)(peer.variant).fit(resumed)
    except Exception as error:
        return Verdict("pass", f"refuses: {brief(error)}")
    assert resumed.recorder is not None
    saved, loaded = job.recorder.last_moments, resumed.recorder.first_moments
    if not loaded:
        return Verdict("FAIL", "the moments are lost")
    wrong = moved(saved, loaded)
    return judge([f"{len(wrong)} of {len(saved)} moments land on another parameter, silently"] if wrong else [])


def _fresh(job: Job, checkpoint: Path, folder: Path) -> Job:
    """Return the job as a new process would start it."""
    return job.but(network=small_network(seed=1), recorder=Recorder(), resume=checkpoint, folder=folder)


def _differences(whole: Job, resumed: Job) -> list[str]:
    assert whole.recorder is not None
    assert resumed.recorder is not None
    found: list[str] = []
    if not resumed.recorder.snapshots:
        return ["no step was taken: all"]
    for snapshot in resumed.recorder.snapshots:
        found += snapshot.differences(whole.recorder.at(snapshot.epoch, snapshot.step))
    if moved(tensors(whole.network), tensors(resumed.network)):
        found.append("final weights")
    return list(dict.fromkeys(found))


def _first_differences(whole: Job, resumed: Job) -> list[str]:
    assert whole.recorder is not None
    assert resumed.recorder is not None
    first = resumed.recorder.snapshots[0]
    original = whole.recorder.at(first.epoch, first.step)
    found = first.differences(original)
    if original.trainable - first.trainable:
        found.append(f"{len(original.trainable - first.trainable)} thawed parameters frozen")
    return found


def _exponential(optimizer: Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
