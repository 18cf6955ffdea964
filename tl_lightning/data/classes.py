"""A data set with some of its classes only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl_lightning.data.images import RawPart, RawSet
from tl_lightning.errors import UserError, unknown_name

NO_CLASS = -1  # label of the images whose class was left out


def only_classes(raw: RawSet, classes: Sequence[str]) -> RawSet:
    """Return the set with the named classes, numbered in the order given; other images get ``NO_CLASS``.

    Raises:
        UserError: A name is unknown or given twice, or fewer than two are given.
    """
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise UserError(f"classes must name at least two classes, none twice, not {', '.join(map(str, classes))}")
    for name in classes:
        if name not in raw.class_names:
            raise unknown_name("class", name, raw.class_names)
    numbers = np.full(len(raw.class_names), NO_CLASS, dtype=np.int64)
    for number, name in enumerate(classes):
        numbers[raw.class_names.index(name)] = number
    parts = {name: RawPart(part.source, numbers[part.labels], part.strata) for name, part in raw.parts.items()}
    return RawSet(parts, tuple(classes))
