"""S4: throughput of full fine-tuning."""

from __future__ import annotations

from peers.job import Job

from scenarios.frozen import fit_of
from scenarios.measure import Prepare, Result, Row, Target, interleave, ratio
from scenarios.workload import BARE, OURS, Workload, contenders

KEYS = ("lightning", "fastai", "timm", "bare", "bare-channels-last", "ours-study")


def full_fine_tuning(work: Workload) -> Result:
    """S4: all layers train, 2 epochs; start-up of the Trainers is part of it."""
    result = Result(
        "S4", f"full fine-tuning, {len(work.train[0]):,} images, {work.sizes.image_size} px", reference=BARE
    )
    runs: dict[str, Prepare] = {name: fit_of(cls, _everything, work) for name, cls in contenders(KEYS).items()}
    seconds = interleave(runs, work.sizes.repeats)
    images = 2 * len(work.train[0])
    result.rows = [Row("S4", name, "images/s", [images / s for s in values]) for name, values in seconds.items()]
    result.notes.append("with nothing frozen finetuning-scheduler is Lightning's Trainer and does not run twice")
    peers = list(contenders(("lightning", "fastai", "timm")))
    result.targets = [
        Target(
            "S4", "throughput / bare PyTorch loop", ratio(result.median(OURS), result.median(BARE)), 0.95, "at least"
        ),
        Target(
            "S4", "throughput / fastest peer", ratio(result.median(OURS), result.best(peers, True)), 1.0, "at least"
        ),
    ]
    return result


def _everything(work: Workload) -> Job:
    return work.job(work.network(), frozen=False, epochs=2)
