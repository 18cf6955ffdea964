"""Whether a training run had stopped improving when it ended."""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 0.01  # of a metric between 0 and 1: one point
TAIL = 0.25  # share of the epochs that must bring no more than that


def reached_plateau(values: Sequence[float]) -> bool | None:
    """Return whether the last quarter of the epochs improved the best value by less than one point.

    Args:
        values: The metric after every epoch, higher is better, as a fraction.

    Returns:
        None with fewer than four epochs, of which nothing can be said.
    """
    if len(values) < 4:
        return None
    tail = max(1, round(TAIL * len(values)))
    return max(values[-tail:]) - max(values[:-tail]) < TOLERANCE
