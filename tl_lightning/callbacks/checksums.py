"""Checksums of tensors that notice a single flipped bit, computed where the tensors are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

_CHUNK = 2**20  # values at a time, so that a big layer needs no big temporary


def checksums(tensors: Iterable[Tensor]) -> Tensor:
    """Return one int64 for each tensor, on the device of the first.

    The bit patterns are summed with odd weights that depend on the position: any change of a single value changes the
    sum, so do swapped values, and so does the sign of a zero.
    """
    sums = [_checksum(tensor.detach()) for tensor in tensors]
    if not sums:
        return torch.empty(0, dtype=torch.int64)
    return torch.stack([s.to(sums[0].device, non_blocking=True) for s in sums])


def _checksum(tensor: Tensor) -> Tensor:
    bits = _as_int32(tensor)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    weights = _weights(tensor.device)
    for chunk in bits.split(_CHUNK):
        total = total * 31 + (chunk * weights[: chunk.numel()]).sum(dtype=torch.int64)
    return total


def _as_int32(tensor: Tensor) -> Tensor:
    """Return the bit patterns as a flat int32 tensor; 64-bit values give two entries."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.contiguous().reshape(-1)
    size = flat.element_size()
    if size >= 4:
        return flat.view(torch.int32)
    return flat.view(torch.int16 if size == 2 else torch.uint8).to(torch.int32)


@cache
def _weights(device: torch.device) -> Tensor:
    return torch.arange(1, 2 * _CHUNK, 2, dtype=torch.int32, device=device)
