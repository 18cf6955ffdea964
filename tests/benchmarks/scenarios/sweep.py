"""S3: heads on 8 boundaries x 3 seeds x 6 learning rates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenarios.frozen import FORWARD, forward_of, probe_job
from scenarios.measure import Prepare, Result, Row, Run, Target, interleave, ratio
from scenarios.workload import OURS, Workload
from tl_lightning.data.loader import EpochOrder
from tl_lightning.features import ActivationCache, PartActivations, global_average, train_heads
from tl_lightning.tasks import TransferModule

BOUNDARIES, SEEDS, RATES = 8, (0, 1, 2), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RUNS = BOUNDARIES * len(SEEDS) * len(RATES)


def head_sweep(work: Workload) -> Result:
    """S3: one pass that keeps all boundaries and all heads trained together, against one run a head."""
    result = Result("S3", f"{RUNS} heads, {len(work.train[0]):,} images, {work.sizes.epochs} epochs", reference=FORWARD)
    sweep_of(work.tiny, BOUNDARIES)()()
    runs: dict[str, Prepare] = {
        FORWARD: lambda: forward_of(work.network(), work.train[0], work),
        OURS: sweep_of(work, BOUNDARIES),
    }
    seconds = interleave(runs, work.sizes.repeats)
    result.rows = [Row("S3", name, "s", seconds[name]) for name in (FORWARD, OURS)]
    for name, values in work.probe_seconds.items():
        if name not in (FORWARD, OURS):
            result.rows.append(Row("S3", f"{name}, one run x {RUNS}", "s", [RUNS * value for value in values]))
    result.notes += [
        f"peers train a head a run: the time of one run of S1 x {RUNS}, not measured; a head on a lower boundary "
        "would cost them less",
        f"a head of such a sweep differs from the same head trained alone by {_difference():.1e} at most",
    ]
    within = ratio(result.median(OURS), result.median(FORWARD))
    result.targets = [Target("S3", "time / one bare eager forward pass", within, 1.5, "at most")]
    return result


def sweep_of(work: Workload, boundaries: int) -> Prepare:
    """Return what makes a sweep over some boundaries, evenly spaced by depth."""

    def prepare() -> Run:
        job = probe_job(work)

        def run() -> None:
            mean, std = job.normalisation
            module = TransferModule(job.network, work.data.num_classes, mean=mean, std=std)
            for features in _features(work, module, boundaries).values():
                train_heads(
                    features,
                    work.data.train_set.labels,
                    work.data.num_classes,
                    seeds=SEEDS,
                    rates=RATES,
                    epochs=work.sizes.epochs,
                    batch_size=work.sizes.batch_size,
                )

        return run

    return prepare


def _features(work: Workload, module: TransferModule, boundaries: int) -> dict[str, Tensor]:
    """Return the pooled features of the training images at every boundary, from one pass."""
    names = [boundary.name for boundary in module.stages.boundaries[:-1]]  # the last one ends with the logits
    places = torch.linspace(0, len(names) - 1, boundaries + 1).round().long()[1:]
    chosen = [names[place] for place in places]
    source = PartActivations(work.data, module, chosen, ActivationCache(), reduce=global_average)
    everything = torch.arange(len(work.data.train_set))
    return {name: rows.gather(everything) for name, rows in source.part("train").items()}


def _difference() -> float:
    """Return the largest difference of a weight between a head of the sweep and the same head trained alone."""
    torch.manual_seed(0)
    features, labels = torch.randn(200, 32), torch.randint(0, 4, (200,))
    weights, _ = train_heads(features, labels, 4, seeds=SEEDS, rates=RATES, epochs=3)
    generator = torch.Generator().manual_seed(SEEDS[1])
    head = nn.Linear(32, 4)
    head.weight.data, head.bias.data = torch.randn(4, 32, generator=generator) * 0.01, torch.zeros(4)
    optimizer = torch.optim.AdamW(head.parameters(), RATES[2], weight_decay=0.01)
    for epoch in range(3):
        for rows in torch.from_numpy(EpochOrder(200, True, SEEDS[1]).order(epoch)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimizer.step()
    return float((head.weight.detach() - weights[1, 2]).abs().max())
