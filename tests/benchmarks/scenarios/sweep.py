"""S3: heads on 8 boundaries x 3 seeds x 6 learning rates."""

from __future__ import annotations

from scenarios.frozen import FORWARD, fit_of, forward_of
from scenarios.measure import Prepare, Result, Row, Target, interleave, ratio
from scenarios.workload import OURS, PEERS, Workload, contenders

BOUNDARIES, SEEDS, RATES = 8, 3, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RUNS = BOUNDARIES * SEEDS * len(RATES)


def head_sweep(work: Workload) -> Result:
    """S3: one pass that keeps all boundaries and all heads trained together, against one run a head."""
    result = Result("S3", f"{RUNS} heads, {len(work.train[0]):,} images, {work.sizes.epochs} epochs", reference=FORWARD)
    runs: dict[str, Prepare] = {FORWARD: lambda: forward_of(work.network(), work.train[0], work)}
    for name, cls in contenders((*PEERS, "bare")).items():
        runs[name] = fit_of(cls, lambda: work.job(work.network(), frozen=True))
    for name, values in interleave(runs, work.sizes.repeats).items():
        times = 1 if name in (FORWARD, OURS) else RUNS
        label = name if times == 1 else f"{name}, one run x {RUNS}"
        result.rows.append(Row("S3", label, "s", [times * value for value in values]))
    result.notes.append(f"peers train a head a run: the time of one run is measured and multiplied by {RUNS}")
    within = ratio(result.median(OURS), result.median(FORWARD))
    result.targets = [Target("S3", "time / one bare eager forward pass", within, 1.5, "at most")]
    return result
