"""Random numbers that depend on the place in training alone, so that a resumed run draws the same ones."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchPosition:
    """Where in training a batch stands; together with a seed it fixes every random number of the batch."""

    epoch: int
    batch_idx: int
    rank: int = 0


def generator(seed: int, position: BatchPosition, name: str) -> torch.Generator:
    """Return a CPU generator that is a pure function of its arguments.

    Every operation has a stream of its own (``name``), so that switching one on leaves the others as they were.
    The numbers are drawn on the CPU: the same on every device, and indices made of them cost no device sync.
    """
    entropy = [seed, position.epoch, position.batch_idx, position.rank, zlib.crc32(name.encode())]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to ``device`` without waiting for the work that is queued there."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def uniform(random: Tensor, low: float, high: float) -> Tensor:
    """Spread numbers of [0, 1) over [low, high)."""
    return low + (high - low) * random
