"""Traps 5, 6 and 8: the learning rates of the groups are those that were asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peers.job import Job, NotApplicable, Peer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, ReduceLROnPlateau, StepLR

from checks.schedulers import SCHEDULERS, TOTAL, Maker
from checks.verdict import STEPS, Verdict, brief, judge, small_job, thaw_at

EPOCHS = TOTAL // STEPS


def schedulers(peer: Peer, folder: Path) -> Verdict:
    """Trap 5: with every torch scheduler and two thaws, the rates are those of the scheduler alone."""
    if peer.package == "fastai":
        raise NotApplicable("schedules by its own callbacks, not by torch's schedulers")
    broken, refused, off = [], [], []
    for name, make in SCHEDULERS.items():
        job = thaw_at(small_job(peer, epochs=EPOCHS, scheduler=make), 1, 2)
        try:
            type(peer)(peer.variant).fit(job)
        except Exception as error:
            refuses = type(error).__name__ in ("MisconfigurationException", "UserError")
            (refused if refuses else broken).append(name)
            continue
        if not _follows(job, make, within_epoch=not peer.gradual):
            off.append(name)
    kinds = {"breaks in mid-fit with": broken, "refuses": refused, "wrong rates with": off}
    problems = [f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names]
    return judge(problems, f"{len(SCHEDULERS)} schedulers")


def _follows(job: Job, make: Maker, within_epoch: bool) -> bool:
    """Whether the head has the scheduler's rates and thawed groups a constant share of them.

    ``within_epoch`` is for a peer that documents a rate of its own for thawed groups, set at every epoch start.
    """
    assert job.recorder is not None
    table = _table(make, job.lr)
    shares: dict[tuple[str, int], list[float]] = {}
    for index, snapshot in enumerate(job.recorder.snapshots):
        if not math.isclose(snapshot.rates["head.weight"], table[index], rel_tol=1e-6, abs_tol=1e-12):
            return False
        for name in snapshot.trainable & snapshot.rates.keys():
            if table[index] > 1e-9:
                share = snapshot.rates[name] / table[index]
                shares.setdefault((name, snapshot.epoch if within_epoch else 0), []).append(share)
    return all(max(values) - min(values) < 1e-4 * max(values) for values in shares.values())


def _table(make: Maker, lr: float) -> list[float]:
    """Return the rate of every step from the scheduler on an optimizer of one parameter."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=lr)
    scheduler, rates = make(optimizer), []
    for step in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        elif (step + 1) % STEPS == 0:
            scheduler.step(1.0)
    return rates


def ratios(peer: Peer, folder: Path) -> Verdict:
    """Trap 6: rates stay ``decay ** depth`` of the head's after the rate finder, in SWA and in warm-up."""
    problems, notes = [], []
    for feature, ways in FEATURES.items():
        outcomes = {way: _try(peer, folder / way, **changes) for way, changes in ways.items()}
        passed = [way for way, outcome in outcomes.items() if outcome == ""]
        if "n/a" in outcomes.values():
            notes.append(f"has no {feature} of this kind")
        elif not passed:
            problems += [f"{way}: {outcome}" for way, outcome in outcomes.items()]
        elif passed[0] != next(iter(ways)):
            notes.append(f"{passed[0]} passes, {next(iter(ways))} does not")
    return judge(problems, "; ".join(notes))


def _try(peer: Peer, folder: Path, **changes: Any) -> str:
    """Return what is wrong with the ratios in a fit, ``""`` for nothing."""
    job = thaw_at(small_job(peer, epochs=5, decay=0.5, folder=folder, **changes), 1, 2)
    try:
        type(peer)(peer.variant).fit(job)
    except NotApplicable:
        return "n/a"
    except Exception as error:
        return brief(error)
    return _wrong_ratio(job)


def _wrong_ratio(job: Job) -> str:
    assert job.recorder is not None
    for snapshot in job.recorder.snapshots:
        for group in range(job.frozen_groups(snapshot.epoch), len(job.groups)):
            held = [name for name in job.group_names(group) if name in snapshot.rates]  # trap 9 is about the others
            found = {round(snapshot.rates[name] / snapshot.rates["head.weight"], 4) for name in held}
            wanted = round(job.rate(group) / job.lr, 4)
            if found != {wanted}:
                depth = len(job.groups) - 1 - group
                shown = "/".join(f"{f:g}" for f in sorted(found))
                return f"rate {shown} of the head's, not {wanted:g}, {depth} below the head in epoch {snapshot.epoch}"
    return ""


def thaw_kick(peer: Peer, folder: Path) -> Verdict:
    """Trap 8: the first step after a thaw moves weights by < 0.3 of the full rate; in a cosine's tail it is > 0.05."""
    kick = thaw_at(small_job(peer, epochs=3, warmup_steps=STEPS, scheduler=_flat), 2)
    peer.fit(kick)
    problems = []
    first = _first_update(kick)
    if first > 0.3:
        problems.append(f"the first update after the thaw is {first:.2f} of the full rate")
    tail = thaw_at(small_job(peer, epochs=10, warmup_steps=STEPS, scheduler=_cosine), 9)
    try:
        type(peer)(peer.variant).fit(tail)
        rate = _mean_rate(tail)
        if rate < 0.05:
            problems.append(f"thawed in the tail of a cosine, its mean rate is {rate:.3f} of the full one")
    except Exception as error:
        problems.append(f"cosine: {brief(error)}")
    return judge(problems, f"first update {first:.2f} of the full rate")


def _first_update(job: Job) -> float:
    """Return the mean change of thawed convolutions in the step after the thaw, as a share of the rate."""
    assert job.recorder is not None
    before, after = job.recorder.at(2, 0), job.recorder.at(2, 1)
    names = [n for n in before.weights if n.startswith("backbone") and before.weights[n].ndim == 4]
    change = torch.cat([(after.weights[n] - before.weights[n]).flatten() for n in names])
    return float(change.abs().mean()) / job.lr


def _mean_rate(job: Job) -> float:
    assert job.recorder is not None
    name = next(n for n, p in job.network.named_parameters() if n.startswith("backbone") and p.ndim == 4)
    rates = [s.rates.get(name, 0.0) for s in job.recorder.of_epoch(job.epochs - 1)]
    return sum(rates) / len(rates) / job.lr


def _warmup(optimizer: Optimizer) -> LinearLR:
    return LinearLR(optimizer, 0.1, total_iters=4 * STEPS)


def _warmup_by_lambda(optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, _rising)


def _rising(step: int) -> float:
    return min(1.0, 0.1 + 0.9 * step / (4 * STEPS))


def _flat(optimizer: Optimizer) -> StepLR:
    return StepLR(optimizer, 10**6)


def _cosine(optimizer: Optimizer) -> CosineAnnealingLR:
    return CosineAnnealingLR(optimizer, 10 * STEPS)


FEATURES: dict[str, dict[str, dict[str, Any]]] = {  # feature -> ways to use it -> changes of the job
    "rate finder": {"lr_find": {"extra": "lr_find"}},
    "SWA": {"swa": {"extra": "swa"}, "swa with a list of rates": {"extra": "swa with a list of rates"}},
    "warm-up": {"LinearLR": {"scheduler": _warmup}, "LambdaLR": {"scheduler": _warmup_by_lambda}},
}
