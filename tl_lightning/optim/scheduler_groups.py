"""Learning-rate schedulers follow the groups of their optimizer when these are split or reordered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# what torch's schedulers (and timm's: base_values) name the lists that hold one entry a group
_PER_GROUP = ("lrs", "_last_lr", "lambdas", "momentums", "base_values")


def expand_schedulers(scheduler: Any, source: Sequence[int], count: int) -> None:
    """Give the per-group lists of a scheduler one entry for each new group, in place.

    Reaches all torch schedulers, those inside ``SequentialLR`` and ``ChainedScheduler`` too, and foreign ones that
    follow torch's names (``base_lrs``, ``min_lrs``, ``lr_lambdas``, ``max_momentums``, ...).

    Args:
        scheduler: The scheduler.
        source: For every new group, the position of the old group it came from.
        count: How many groups there were.
    """
    for inner in getattr(scheduler, "_schedulers", ()):
        expand_schedulers(inner, source, count)
    for name, value in vars(scheduler).items():
        if name.endswith(_PER_GROUP) and isinstance(value, list | tuple) and len(value) == count:
            setattr(scheduler, name, type(value)(value[position] for position in source))
