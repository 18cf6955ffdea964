"""Activations of a list of images, wherever they are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tl_lightning.activations.format import Segment


class Activations:
    """Activations of a list of images, gathered by position.

    Args:
        segments: Where they lie.
        segment: int64 [N], the segment of each image.
        row: int64 [N], its row in the segment.
    """

    def __init__(self, segments: Sequence[Tensor], segment: Tensor, row: Tensor) -> None:
        self._segments = list(segments)
        self._segment = segment
        self._row = row

    def __len__(self) -> int:
        return len(self._row)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one image's activations."""
        return tuple(self._segments[0].shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all images' activations as they are kept."""
        return len(self) * self._segments[0][0].numel() * self._segments[0].element_size()

    def gather(self, positions: Tensor) -> Tensor:
        """Return float32 [n, ...], a copy, on the device where the activations lie."""
        return self._gather(positions).float()

    def all(self) -> Tensor:
        """Return all of them, float32 [N, ...], a copy."""
        return self.gather(torch.arange(len(self)))

    def select(self, positions: Tensor) -> Activations:
        """Return the activations at ``positions`` as a list of their own; nothing is copied."""
        return Activations(self._segments, self._segment[positions], self._row[positions])

    def to(self, device: torch.device) -> Activations:
        """Return a copy on a device."""
        values = self._gather(torch.arange(len(self))).to(device)
        return Activations([values], torch.zeros_like(self._row), torch.arange(len(self)))

    def _gather(self, positions: Tensor) -> Tensor:
        rows, first = self._row[positions], self._segments[0]
        if len(self._segments) == 1:
            return first.index_select(0, rows.to(first.device))
        segments = self._segment[positions]
        values = torch.empty((len(positions), *self.row_shape), dtype=first.dtype)
        for number, source in enumerate(self._segments):
            here = segments == number
            values[here] = source.index_select(0, rows[here])
        return values


def located(segments: Sequence[Segment], ids: Sequence[str]) -> Activations | None:
    """Return the activations of ``ids``, or None where an image is in no segment."""
    place = {
        i: (number, row) for number, segment in reversed(list(enumerate(segments))) for row, i in enumerate(segment.ids)
    }
    if not ids or any(i not in place for i in ids):
        return None
    used = sorted({place[i][0] for i in ids})
    new = {number: position for position, number in enumerate(used)}
    segment = torch.tensor([new[place[i][0]] for i in ids])
    row = torch.tensor([place[i][1] for i in ids])
    return Activations([segments[number].values for number in used], segment, row)
