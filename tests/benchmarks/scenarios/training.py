"""S4: throughput of full fine-tuning."""

from __future__ import annotations

import torch
from peers.job import Job

from scenarios.frozen import fit_of
from scenarios.measure import Prepare, Result, Row, Target, interleave, ratio
from scenarios.workload import OURS, Workload, contenders

BARE = "bare PyTorch, channels last"
TRAINER = "Lightning Trainer"  # with nothing frozen neither Lightning tool adds anything to it


def full_fine_tuning(work: Workload) -> Result:
    """S4: all layers train, 2 epochs; start-up of the Trainers is part of it. All are given channels-last weights."""
    title = f"full fine-tuning, {len(work.train[0]):,} images, {work.sizes.image_size} px, 2 epochs, channels last"
    result = Result("S4", title, reference=BARE)
    runs: dict[str, Prepare] = {
        (TRAINER if key == "lightning" else name): fit_of(cls, _channels_last, work)
        for key in ("lightning", "fastai", "timm", "bare-channels-last", "ours-study")
        for name, cls in contenders((key,)).items()
    }
    runs |= {f"{name}, channels first": fit_of(cls, _everything, work) for name, cls in contenders(("bare",)).items()}
    seconds = interleave(runs, work.sizes.repeats)
    images = 2 * len(work.train[0])
    result.rows = [Row("S4", name, "images/s", [images / s for s in values]) for name, values in seconds.items()]
    result.notes.append("with nothing frozen both Lightning tools are Lightning's Trainer, which runs once")
    peers = [TRAINER, *contenders(("fastai", "timm"))]
    result.targets = [
        Target(
            "S4", "throughput / bare PyTorch loop", ratio(result.median(OURS), result.median(BARE)), 0.95, "at least"
        ),
        Target(
            "S4", "throughput / fastest peer", ratio(result.median(OURS), result.best(peers, True)), 1.0, "at least"
        ),
    ]
    return result


def _channels_last(work: Workload) -> Job:
    job = _everything(work)
    job.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return job


def _everything(work: Workload) -> Job:
    return work.job(work.network(), frozen=False, epochs=2)
