"""S1 and S2: a linear probe, and a network frozen to half of its operations."""

from __future__ import annotations

from collections.abc import Callable

from peers.augment import FlipAndShift
from peers.job import Job, Network, Peer
from torch import Tensor

from scenarios.measure import Prepare, Result, Row, Run, Target, interleave, ratio
from scenarios.workload import BARE, OURS, PEERS, Workload, accuracy, contenders, forward_pass

FORWARD, PREFIX, SUFFIX = "one forward pass", "forward pass of the frozen part", "forward pass of the trained part"


def linear_probe(work: Workload) -> Result:
    """S1: feature extraction and training of the head together."""
    result = Result("S1", f"linear probe, {_size(work)}", reference=FORWARD)
    networks: dict[str, Network] = {}
    runs: dict[str, Prepare] = {FORWARD: lambda: forward_of(work.network(), work.train[0], work)}
    for name, cls in contenders((*PEERS, "bare", "ours-study")).items():
        runs[name] = fit_of(cls, probe_job, work, networks)
    work.probe_seconds = _measure(result, runs, work)
    found = {name: accuracy(network, work.test) for name, network in networks.items()}
    result.rows += [Row("S1", name, "% test accuracy", [value]) for name, value in found.items()]
    ours, fastest = result.median(OURS), result.best(_names(PEERS))
    result.targets = [
        Target("S1", "time / one bare eager forward pass", ratio(ours, result.median(FORWARD)), 0.8, "at most"),
        Target("S1", "times faster than the fastest peer", ratio(fastest, ours), 15, "at least"),
        Target("S1", "points of accuracy from the plain frozen probe", _apart(found), 0.5, "at most"),
    ]
    return result


def half_frozen(work: Workload) -> Result:
    """S2: the lower half of the operations frozen, without augmentation."""
    result = Result("S2", f"lower half frozen (before block {work.half}), {_size(work)}")
    runs: dict[str, Prepare] = {
        PREFIX: lambda: forward_of(work.network(work.half).backbone, work.train[0], work),
        SUFFIX: lambda: _forward_suffix(work),
    }
    for name, cls in contenders((*PEERS, "bare", "ours-study")).items():
        runs[name] = fit_of(cls, _half, work)
    _measure(result, runs, work)
    prefix, suffix = result.median(PREFIX), result.median(SUFFIX)
    assert prefix is not None
    assert suffix is not None
    model = prefix + 3 * work.sizes.epochs * suffix
    result.notes.append(f"cost model: {prefix:.2f} s + {work.sizes.epochs} x 3 x {suffix:.2f} s = {model:.2f} s")
    ours = result.median(OURS)
    result.targets = [
        Target("S2", "time / cost model", ratio(ours, model), 1.0, "at most"),
        Target("S2", "times faster than the fastest peer", ratio(result.best(_names(PEERS)), ours), 2.5, "at least"),
    ]
    return result


def half_frozen_augmented(work: Workload) -> Result:
    """S2 with random augmentation in every epoch: nothing can be kept."""
    result = Result("S2a", f"lower half frozen, random flips and shifts, {_size(work)}")
    runs: dict[str, Prepare] = {}
    for name, cls in contenders((*PEERS, "bare", "ours-study")).items():
        runs[name] = fit_of(cls, _half_augmented, work)
    _measure(result, runs, work)
    faster = ratio(result.best(_names(PEERS)), result.median(OURS))
    result.targets = [Target("S2a", "times faster than the fastest peer", faster, 1.3, "at least")]
    return result


def _measure(result: Result, runs: dict[str, Prepare], work: Workload) -> dict[str, list[float]]:
    seconds = interleave(runs, work.sizes.repeats)
    result.rows += [Row(result.scenario, name, "s", values) for name, values in seconds.items()]
    return seconds


def fit_of(
    cls: type[Peer], make: Callable[[Workload], Job], work: Workload, networks: dict[str, Network] | None = None
) -> Prepare:
    """Return what makes a fit; the trained network of the last one is kept in ``networks``.

    A fit of a few images comes before all, so that none is timed with what its libraries load at first use.
    """
    cls().fit(make(work.tiny))

    def prepare() -> Run:
        job = make(work)
        if networks is not None:
            networks[cls.name] = job.network
        return lambda: cls().fit(job)

    return prepare


def probe_job(work: Workload) -> Job:
    """Return the job of a linear probe."""
    return work.job(work.network(), frozen=True)


def _half(work: Workload) -> Job:
    return work.job(work.network(work.half), frozen=True)


def _half_augmented(work: Workload) -> Job:
    return _half(work).but(augment=FlipAndShift())


def forward_of(network: Network | Callable, images: Tensor, work: Workload) -> Run:
    return lambda: forward_pass(network, images, work.sizes.batch_size)  # type: ignore[arg-type]


def _forward_suffix(work: Workload) -> Run:
    network = work.network(work.half)
    shape = network.backbone.eval()(work.train[0][:1]).shape[1:]
    return forward_of(network.head, work.train[0].new_zeros(len(work.train[0]), *shape).normal_(), work)


def _names(keys: tuple[str, ...]) -> list[str]:
    return list(contenders(keys))


def _apart(found: dict[str, float]) -> float | None:
    return abs(found[OURS] - found[BARE]) if OURS in found and BARE in found else None


def _size(work: Workload) -> str:
    sizes = work.sizes
    return f"{len(work.train[0]):,} images, {sizes.image_size} px, {sizes.epochs} epochs"
