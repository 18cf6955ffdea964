"""A source whose images are shifted as they are read, so that a corrupted copy is decoded and kept like any other."""

from __future__ import annotations

import torch
from torch import Tensor

from tl_lightning.data.decoding import BadImageError
from tl_lightning.data.shifts import check_shift, corrupt
from tl_lightning.data.sources import PixelSource, Positions


class ShiftedSource:
    """The images of another source under a domain shift; an image's draw depends on its position and the seed.

    Args:
        source: The clean images.
        name: One of ``shifts.SHIFTS``.
        severity: 1 to 5.
        seed: Same seed, same images.
    """

    def __init__(self, source: PixelSource, name: str, severity: int, seed: int = 0) -> None:
        check_shift(name, severity)
        self.source = source
        self.name = name
        self.severity = severity
        self.seed = seed

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.source.channels

    def __len__(self) -> int:
        return len(self.source)

    def native_size(self) -> int:
        """Return the shorter side of the clean images in pixels."""
        return self.source.native_size()

    def read(self, positions: Positions, size: int, out: Tensor) -> dict[int, BadImageError]:
        """Read clean images and shift them; see :class:`~tl_lightning.data.sources.PixelSource`."""
        failures = self.source.read(positions, size, out)
        out.copy_(corrupt(out, self.name, self.severity, self.seed, torch.from_numpy(positions)))
        return failures

    def content_key(self) -> str:
        """Return a hash that changes with the clean images or the shift."""
        return f"{self.source.content_key()} {self.name} {self.severity} {self.seed}"
