"""Seeded splits, subsets and label noise: pure functions of labels and a seed.

Every function draws from its own stream of ``numpy.random.Generator`` seeded by (seed, purpose, class), so that a
larger subset contains every smaller one of the same seed and a class's draw does not depend on the other classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl_lightning.errors import UserError

Ints = NDArray[np.int64]

_HOLDOUT, _SUBSET, _CAP, _NOISE = range(4)


def stratified_holdout(strata: Ints, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Split positions into a kept and a held-out part with the same mixture of strata.

    A stratum of one image stays in the kept part, and every other stratum keeps at least one image.

    Args:
        strata: int64 [N], the stratum (class) of every image.
        fraction: Part to hold out, between 0 and 1.
        seed: Same seed, same split.

    Returns:
        Two sorted arrays of positions: kept and held out.
    """
    names, counts = np.unique(strata, return_counts=True)
    total = min(max(1, round(fraction * len(strata))), int((counts - 1).sum()))
    takes = _allocate(counts, counts - 1, total)
    held = [_shuffled(strata, name, seed, _HOLDOUT)[:take] for name, take in zip(names, takes, strict=True)]
    held_out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    kept = np.setdiff1d(np.arange(len(strata)), held_out, assume_unique=True)
    return kept, held_out


def stratified_cap(strata: Ints, count: int, seed: int) -> Ints:
    """Return at most ``count`` sorted positions with the mixture of strata kept."""
    if count >= len(strata):
        return np.arange(len(strata))
    names, counts = np.unique(strata, return_counts=True)
    takes = _allocate(counts, counts, count)
    parts = [_shuffled(strata, name, seed, _CAP)[:take] for name, take in zip(names, takes, strict=True)]
    return np.sort(np.concatenate(parts))


def samples_per_class(labels: Ints, count: int, seed: int, class_names: Sequence[str]) -> Ints:
    """Return sorted positions of ``count`` images of every class; nested over ``count`` for one seed.

    Raises:
        UserError: A class has fewer images; names the class and its count.
    """
    picks = []
    for label, name in enumerate(class_names):
        pool = _shuffled(labels, label, seed, _SUBSET)
        if len(pool) < count:
            raise UserError(
                f"samples_per_class is {count}, but class {name!r} has only {len(pool)} training images "
                "(after the validation split); choose a smaller number"
            )
        picks.append(pool[:count])
    return np.sort(np.concatenate(picks))


def class_fraction(labels: Ints, fraction: float, seed: int) -> Ints:
    """Return sorted positions of a fraction of every class, at least one image each; nested over ``fraction``."""
    picks = []
    for label in np.unique(labels):
        pool = _shuffled(labels, label, seed, _SUBSET)
        picks.append(pool[: max(1, int(np.ceil(fraction * len(pool) - 1e-9)))])
    return np.sort(np.concatenate(picks))


def with_label_noise(labels: Ints, rate: float, num_classes: int, seed: int) -> Ints:
    """Return labels of which exactly ``round(rate * N)`` are replaced by another class, drawn uniformly.

    Symmetric noise as in Hendrycks et al. 2019, "Using Pre-Training Can Improve Model Robustness and Uncertainty",
    but a replaced label never keeps its class, so that the rate is exact.
    """
    rng = np.random.default_rng([seed, _NOISE])
    order = rng.permutation(len(labels))
    shift = rng.integers(1, num_classes, size=len(labels))
    noisy = labels.copy()
    flipped = order[: round(rate * len(labels))]
    noisy[flipped] = (labels[flipped] + shift[flipped]) % num_classes
    return noisy


def _shuffled(strata: Ints, stratum: int, seed: int, purpose: int) -> Ints:
    rng = np.random.default_rng([seed, purpose, int(stratum)])
    return rng.permutation(np.flatnonzero(strata == stratum))


def _allocate(counts: Ints, limits: Ints, total: int) -> Ints:
    """Share ``total`` among strata in proportion to ``counts`` (largest remainder), each at most its limit."""
    exact = total * counts / max(1, counts.sum())
    takes = np.minimum(np.floor(exact).astype(np.int64), limits)
    for stratum in np.argsort(takes - exact, kind="stable"):
        if takes.sum() < total and takes[stratum] < limits[stratum]:
            takes[stratum] += 1
    while takes.sum() < total:  # limits cut some strata short: the others fill up
        room = np.flatnonzero(takes < limits)
        takes[room[: total - int(takes.sum())]] += 1
    return takes
