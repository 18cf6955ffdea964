"""S7: how the time of a linear probe grows with images, epochs and depths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from peers.job import Job, Peer

from scenarios.frozen import fit_of, probe_job
from scenarios.measure import Result, Row, Target, interleave
from scenarios.sweep import sweep_of
from scenarios.workload import BARE, OURS, Workload, contenders

FACTORS = (1, 2, 4, 8)
DEPTHS = (1, 2, 4, 8, 16)


def growth(work: Workload) -> Result:
    """S7: 1 to 8 times the images and the epochs, 1 to 16 depths; a power law fitted to the medians."""
    few, some = work.sizes.images // 8, work.sizes.images // 4
    title = f"growth of a linear probe, from {few} images and 2 epochs; of a sweep over depths, {some} images"
    result = Result("S7", title)
    for name, cls in contenders(("bare", "ours-study")).items():
        _by_images(result, work, name, cls)
        _by_epochs(result, work, name, cls)
    depths = {str(k): sweep_of(Workload(replace(work.sizes, images=some)), k) for k in DEPTHS}
    _add(result, f"{OURS}, depths of a sweep", interleave(depths, work.sizes.repeats))
    slope = exponent([row for row in result.rows if row.contender.endswith("depths of a sweep")])
    result.notes.append(f"{OURS}: time of a sweep grows as its depths to the power {slope:.2f}")
    result.targets.append(Target("S7", "exponent of depths", slope, 1.0, "at most"))
    for name in (OURS, BARE):
        for what in ("images", "epochs"):
            slope = exponent([row for row in result.rows if row.contender == f"{name}, {what}"])
            result.notes.append(f"{name}: time grows as {what} to the power {slope:.2f}")
            if name == OURS:
                bound = 1.1 if what == "images" else 0.5
                result.targets.append(Target("S7", f"exponent of {what}", slope, bound, "at most"))
    result.notes.append("the bounds are our own: those of one pass")
    return result


def _by_images(result: Result, work: Workload, name: str, cls: type[Peer]) -> None:
    runs = {}
    for factor in FACTORS:
        part = Workload(replace(work.sizes, images=work.sizes.images * factor // 8, epochs=2))
        runs[str(len(part.train[0]))] = fit_of(cls, probe_job, part)
    _add(result, f"{name}, images", interleave(runs, work.sizes.repeats))


def _by_epochs(result: Result, work: Workload, name: str, cls: type[Peer]) -> None:
    part = Workload(replace(work.sizes, images=work.sizes.images // 8))
    runs = {}
    for epochs in (2 * factor for factor in FACTORS):

        def make(work: Workload, epochs: int = epochs) -> Job:
            return work.job(work.network(), frozen=True, epochs=epochs)

        runs[str(epochs)] = fit_of(cls, make, part)
    _add(result, f"{name}, epochs", interleave(runs, work.sizes.repeats))


def _add(result: Result, name: str, seconds: dict[str, list[float]]) -> None:
    result.rows += [Row("S7", name, "s", values, float(x)) for x, values in seconds.items()]


def exponent(rows: Sequence[Row]) -> float:
    """Return the slope of log time over log size."""
    points = [(math.log(row.x), math.log(row.median)) for row in rows if row.x]
    x, y = zip(*points, strict=True)
    return float(np.polyfit(x, y, 1)[0])
