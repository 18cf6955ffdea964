"""What the study of domain similarity has to show of the published findings, as it was written before the run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tl_lightning.study.criterion import Criterion, Verdict
from tl_lightning.study.intervals import NOT_MEASURED, Interval, mean_interval
from tl_lightning.study.statistics import decide, paired_difference, shared
from tl_lightning.study.transfer_gains import complete, mean_correlation, rankable

PUBLISHED = 0.884  # Deitsch et al. 2019 on ELPV
MIN_TARGETS = 8


def scores_go_with_gain(points: pd.DataFrame, method: str, name: str) -> Criterion:
    """5c: the scores that are known before training go with the gain over the targets, on average.

    Args:
        points: As from ``gains_by_target``.
        method: Column of the gain.
        name: The gain in words.
    """
    known = rankable(points, [method]) and any(score.predicts for score in complete(points))
    effect = mean_correlation(points, method) if known else NOT_MEASURED
    enough = effect.n >= MIN_TARGETS
    return Criterion(
        finding="5c",
        claim=f"distances and transferability scores go with the {name}",
        source="Agostinelli et al. 2022",
        published="they correlate with it, no score wins everywhere",
        rule=f"mean rank correlation of the scores with the gain above 0 over at least {MIN_TARGETS} targets",
        effect=effect,
        unit="rank correlation",
        verdict=_verdict(effect, "above") if enough else "not decided",
        note="" if enough else f"{len(points)} targets are fewer than {MIN_TARGETS}.",
    )


def near_beats_far(
    probe: Mapping[Hashable, float], tuned: Mapping[Hashable, float], domains: Sequence[str]
) -> list[Criterion]:
    """5a: a near source is better for frozen features, and more so than for fine-tuned ones.

    Args:
        probe: Near minus far of the linear probe by seed.
        tuned: The same of fine-tuning.
        domains: The two domains in words.
    """
    first, second = shared(probe, tuned)
    near = mean_interval(list(first.values())) if first else NOT_MEASURED
    larger = paired_difference(first, second).difference if first else NOT_MEASURED
    note = f"Domains: {'; '.join(domains) or 'none'}. Yosinski et al. split ImageNet into natural and man-made classes."
    return [
        Criterion(
            finding="5a",
            claim=claim,
            source="Yosinski et al. 2014",
            published="frozen features decay with the distance of the tasks, fine-tuning recovers",
            rule=rule,
            effect=effect.scaled(100),
            unit="points above chance",
            verdict=_verdict(effect, "above"),
            note=note,
        )
        for claim, rule, effect in (
            ("a linear probe is better from a near source than from a far one", "near - far above 0", near),
            ("fine-tuning closes the gap", "near - far of the probe minus that of fine-tuning above 0", larger),
        )
    ]


def gain_shrinks(trend: Interval | None, target: str, sizes: Sequence[int]) -> Criterion:
    """5b: the gain shrinks with the number of training images, given its change for ten times as many."""
    effect = trend or NOT_MEASURED
    return Criterion(
        finding="5b",
        claim="far from the source the gain of fine-tuning shrinks with the number of images",
        source="Raghu et al. 2019",
        published="little or no gain on large medical sets",
        rule="change of the gain for ten times the images below 0",
        effect=effect.scaled(100),
        unit="points above chance",
        verdict=_verdict(effect, "below"),
        note=f"On {target} with {', '.join(map(str, sizes)) or 'no'} images a class, scratch for as many optimizer "
        "steps as fine-tuning.",
    )


def published_accuracy(accuracies: npt.ArrayLike) -> Criterion:
    """5b: fine-tuning reaches the published accuracy on ELPV, given its accuracies by seed; none where not run."""
    found = np.asarray(accuracies, dtype=float)
    effect = mean_interval(found) if len(found) else NOT_MEASURED
    reached = effect.high >= PUBLISHED
    return Criterion(
        finding="5b",
        claim="fine-tuning reaches the published accuracy on ELPV at the published split of 75 to 25 %",
        source="Deitsch et al. 2019",
        published="88.42 %",
        published_effect=100 * PUBLISHED,
        rule="the interval of the accuracy reaches 88.4 %",
        effect=effect.scaled(100),
        unit="%",
        verdict="not decided" if effect.anecdotal else "holds" if reached else "fails",
        note="" if len(found) else "Not run here: configs/domain_similarity_elpv.yaml does.",
    )


def _verdict(effect: Interval, direction: Literal["above", "below"]) -> Verdict:
    """Return what an interval says of a bound of 0; nothing with fewer seeds than a comparison needs."""
    return "not decided" if effect.anecdotal else decide(effect, 0.0, direction)
