"""How many times more images a reference needs for the accuracy that a method has: the effective-data multiplier.

After Hernandez et al. 2021, "Scaling laws for transfer", which measure the data that pretraining is worth.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from tl_lightning.errors import UserError
from tl_lightning.study.comparison import by_seed
from tl_lightning.study.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Multiplier:
    """Images that the reference needs, divided by those of the method.

    Attributes:
        interval: Geometric mean over seeds with the t interval of the logarithms. Where a seed's reference never got
            there the mean is a lower bound, where it was better already with its fewest images an upper one, and the
            bounds are nan: how far beyond the sizes tried that seed lies could widen the interval to either side.
        by_seed: The multiplier of each seed, or its bound.
        never: Seeds whose reference never reached the accuracy, with the most images that it was given.
        always: Seeds whose reference had it with the fewest images that it was given.
    """

    interval: Interval
    by_seed: Mapping[Hashable, float]
    never: list[Hashable] = field(default_factory=list)
    always: list[Hashable] = field(default_factory=list)

    def format(self) -> str:
        """Return text such as ``at least 4.2 (in 2 of 3 seeds it never got there)``."""
        i, n = self.interval, self.interval.n
        if self.never and self.always:
            return f"undetermined: beyond both ends of the sizes tried ({n} seeds)"
        if self.never:
            return f"at least {i.mean:.1f} (in {len(self.never)} of {n} seeds the reference never gets there)"
        if self.always:
            return f"at most {i.mean:.1f} (in {len(self.always)} of {n} seeds the fewest images tried are enough)"
        if math.isnan(i.low):
            return f"{i.mean:.1f} (n = {n}, anecdotal)"
        return f"{i.mean:.1f} [{i.low:.1f}, {i.high:.1f}] (n = {n})"


def images_needed(numbers: Mapping[float, float], value: float) -> float:
    """Return the number of images at which a curve reaches a value.

    The curve is made to rise (isotonic regression: noise lets single seeds fall now and then) and is interpolated in
    the logarithm of the number.

    Args:
        numbers: The metric, higher is better, by number of images; at least two.
        value: The value to reach.

    Returns:
        The number, ``inf`` where the curve ends below the value, ``-inf`` where it begins above it.
    """
    if len(numbers) < 2 or min(numbers) <= 0:
        raise UserError("a curve over the number of images needs at least two numbers above 0")
    x = np.log(sorted(numbers))
    y = IsotonicRegression().fit_transform(x, [numbers[number] for number in sorted(numbers)])
    if value > y[-1]:
        return math.inf
    if value < y[0]:
        return -math.inf
    right = int(np.searchsorted(y, value, side="left"))
    if right == 0 or y[right] == y[right - 1]:
        return float(np.exp(x[right]))
    share = (value - y[right - 1]) / (y[right] - y[right - 1])
    return float(np.exp(x[right - 1] + share * (x[right] - x[right - 1])))


def effective_data(
    results: pd.DataFrame, arm: str, images: float, curve: Mapping[float, str], metric: str = "test_accuracy"
) -> Multiplier:
    """Return how many times more images the reference needs for what the arm reaches, over the seeds that all ended.

    Args:
        results: A trial a row.
        arm: The arm that is measured.
        images: Its number of images (a class, if the curve counts a class).
        curve: The reference's arm at each number of images.
        metric: Column to compare, higher is better.

    Raises:
        UserError: No seed ended all of the arms.
    """
    target = by_seed(results, arm, metric)
    reference = {number: by_seed(results, name, metric) for number, name in curve.items()}
    seeds = [seed for seed in target if all(seed in values for values in reference.values())]
    if not seeds:
        raise UserError(f"no seed ended {arm!r} and the whole curve of its reference")
    found = {seed: images_needed({n: values[seed] for n, values in reference.items()}, target[seed]) for seed in seeds}
    never = [seed for seed, number in found.items() if number == math.inf]
    always = [seed for seed, number in found.items() if number == -math.inf]
    bounded = {seed: min(max(number, min(curve)), max(curve)) / images for seed, number in found.items()}
    log = mean_interval(np.log(list(bounded.values())))
    mean, low, high = np.exp([log.mean, log.low, log.high]).tolist()
    interval = Interval(mean, math.nan, math.nan, log.n) if never or always else Interval(mean, low, high, log.n)
    return Multiplier(interval, bounded, never, always)
