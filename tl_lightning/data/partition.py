"""Which images are trained on, validated on and tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tl_lightning.data import splits
from tl_lightning.data.classes import NO_CLASS
from tl_lightning.data.images import RawPart, RawSet
from tl_lightning.errors import UserError

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Partition:
    """How a published set is divided.

    A published validation or test part is used as it is. Otherwise the test part is split off the training part with
    seed 0, so that it is the same in every trial, and then the validation part with ``seed``; both keep the mixture of
    classes. Only the training part is subset, after that, so that a larger subset contains the smaller ones and all
    are judged by the same validation images.

    Args:
        seed: Fixes the validation split and the subset.
        val_fraction: Part of the training images to validate on, where no validation part is published.
        test_fraction: Part of all images to test on, where no test part is published.
        samples_per_class: Training images of every class; None for all.
        fraction: Part of every class's training images; None for all.
        val_samples: At most so many validation images, classes in proportion; None for all.
        test_samples: At most so many test images, classes in proportion; None for all.

    Raises:
        UserError: A value is out of its range, or both ``samples_per_class`` and ``fraction`` are given.
    """

    seed: int = 0
    val_fraction: float = 0.2
    test_fraction: float = 0.25
    samples_per_class: int | None = None
    fraction: float | None = None
    val_samples: int | None = None
    test_samples: int | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed must not be negative, but is {self.seed}")
        for name in ("val_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must lie between 0 and 1, but is {getattr(self, name)}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UserError(f"fraction must be above 0 and at most 1, but is {self.fraction}")
        for name in ("samples_per_class", "val_samples", "test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, but is {value}")
        if self.samples_per_class is not None and self.fraction is not None:
            raise UserError("give samples_per_class or fraction, not both")

    def divide(self, raw: RawSet) -> dict[Part, tuple[RawPart, splits.Ints]]:
        """Return every part's source of images and the sorted positions in it.

        Raises:
            UserError: A class has too few training images, or nothing is left to train on.
        """
        source = raw.parts["train"]
        pool = _labelled(source)
        test, pool = self._held_out(raw, "test", pool, self.test_fraction, seed=0)
        val, pool = self._held_out(raw, "val", pool, self.val_fraction, self.seed)
        return {
            "train": (source, self._subset(source.labels, pool, raw.class_names)),
            "val": _capped(val, self.val_samples),
            "test": _capped(test, self.test_samples),
        }

    def _held_out(
        self, raw: RawSet, part: Part, pool: splits.Ints, fraction: float, seed: int
    ) -> tuple[tuple[RawPart, splits.Ints], splits.Ints]:
        if part in raw.parts:
            return (raw.parts[part], _labelled(raw.parts[part])), pool
        source = raw.parts["train"]
        kept, held = splits.stratified_holdout(_strata(source)[pool], fraction, seed)
        if not len(held):
            raise UserError(f"too few images for a {part} split: every class needs at least two")
        return (source, pool[held]), pool[kept]

    def _subset(self, labels: splits.Ints, pool: splits.Ints, class_names: tuple[str, ...]) -> splits.Ints:
        if self.samples_per_class is not None:
            return pool[splits.samples_per_class(labels[pool], self.samples_per_class, self.seed, class_names)]
        if self.fraction is not None:
            return pool[splits.class_fraction(labels[pool], self.fraction, self.seed)]
        return pool


def _labelled(part: RawPart) -> splits.Ints:
    return np.flatnonzero(part.labels != NO_CLASS)


def _strata(part: RawPart) -> splits.Ints:
    return part.labels if part.strata is None else part.strata


def _capped(held: tuple[RawPart, splits.Ints], cap: int | None) -> tuple[RawPart, splits.Ints]:
    part, positions = held
    if cap is None:
        return held
    return part, positions[splits.stratified_cap(_strata(part)[positions], cap, seed=0)]
