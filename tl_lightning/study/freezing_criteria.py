"""The criteria of published findings on freezing, as they were written before any run."""

from __future__ import annotations

from tl_lightning.study.criterion import Criterion
from tl_lightning.study.intervals import Interval
from tl_lightning.study.statistics import all_of, decide


def kept_layers_are_specific(gap: Interval, fall: Interval) -> Criterion:
    """8a: kept layers lose accuracy on other classes, the last ones most.

    Args:
        gap: With all stages kept, a network of other classes minus one of the same classes.
        fall: Of the network of other classes, all stages kept minus the lower half of them kept.
    """
    return Criterion(
        finding="8a",
        claim="kept layers lose accuracy on other classes, the last ones most",
        source="Yosinski et al. 2014",
        published="62.7 62.3 61.8 59.9 57.8 58.0 54.2 % for layers 1 to 7 kept",
        rule="all stages kept: other - same classes below 0, and all - middle of other classes below 0",
        effect=gap.scaled(100),
        unit="points",
        verdict=all_of(decide(gap, 0.0, "below"), decide(fall, 0.0, "below")),
        note=f"The effect shown is other - same classes at the top; the fall from the middle is "
        f"{fall.scaled(100).format(1)} points. Published: 54.2 against 62.7 % for one layer kept.",
    )


def first_block_is_enough(to_all: Interval, to_head: Interval) -> Criterion:
    """8c: where the input is corrupted, tuning the first block alone matches tuning all, far above the head alone.

    Args:
        to_all: Accuracy with the first block tuned minus that with everything tuned.
        to_head: The same minus that with the head alone tuned.
    """
    return Criterion(
        finding="8c",
        claim="under a corrupted input the first block alone matches tuning all, 8 points above the head alone",
        source="Lee et al. 2023",
        published="replication: 77.0 / 78.2, 79.8 / 80.2, 80.2 / 79.4 % (first block / all)",
        published_effect=-0.27,
        rule="first block - all above -1.5 points, and first block - head above 8 points",
        effect=to_all.scaled(100),
        unit="points",
        verdict=all_of(decide(to_all, -0.015, "above"), decide(to_head, 0.08, "above")),
        note=f"Shown is first block - all; first block - head is {to_head.scaled(100).format(1)} points.",
    )
