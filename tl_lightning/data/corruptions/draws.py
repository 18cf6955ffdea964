"""Random numbers that depend on (seed, image) alone, so that no image's corruption depends on its batch.

The draw of an image is the same at every severity: a higher severity is the same disturbance, stronger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch.

    Args:
        seed: The corruption's seed.
        indices: int64 [N], the position of every image in its data set.
        device: Where the numbers go; they are drawn on the CPU, so that every device sees the same.
    """

    seed: int
    indices: Tensor
    device: torch.device

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal [N, *shape]."""
        return self._stack(lambda generator, _: torch.randn(shape, generator=generator))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return uniform [N, *shape] between ``low`` and ``high``."""
        return self._stack(lambda generator, _: torch.rand(shape, generator=generator)) * (high - low) + low

    def poisson(self, rates: Tensor) -> Tensor:
        """Return Poisson counts of the rates [N, ...]."""
        rates = rates.cpu()
        return self._stack(lambda generator, row: torch.poisson(rates[row], generator=generator))

    def permutation(self, count: int) -> Tensor:
        """Return int64 [N, count], a permutation for each image."""
        return self._stack(lambda generator, _: torch.randperm(count, generator=generator))

    def _stack(self, draw: Callable[[Generator, int], Tensor]) -> Tensor:
        rows = []
        for row, index in enumerate(self.indices.tolist()):
            state = np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)[0]
            generator = Generator().manual_seed(int(state >> np.uint64(1)))
            rows.append(draw(generator, row))
        return torch.stack(rows).to(self.device)
