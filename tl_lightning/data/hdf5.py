"""Images in one data set of an HDF5 file, read by position (PatchCamelyon is published so)."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tl_lightning.data.decoding import BadImageError
from tl_lightning.data.sources import Positions, square_crop_tensor

_CHUNK = 256


class Hdf5Source:
    """uint8 images [N, H, W, C] in an HDF5 file.

    Args:
        path: The file.
        key: Name of the data set in it.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        with _h5py().File(path, "r") as file:
            self.shape: tuple[int, ...] = tuple(file[key].shape)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.shape[3]

    def __len__(self) -> int:
        return self.shape[0]

    def native_size(self) -> int:
        """Return the shorter side in pixels."""
        return min(self.shape[1:3])

    def read(self, positions: Positions, size: int, out: Tensor) -> dict[int, BadImageError]:
        """Read, and shrink where wanted; see :class:`~tl_lightning.data.sources.PixelSource`."""
        with _h5py().File(self.path, "r") as file:
            for start in range(0, len(positions), _CHUNK):
                chunk, back = np.unique(positions[start : start + _CHUNK], return_inverse=True)
                rows = torch.from_numpy(file[self.key][chunk][back])
                out[start : start + len(rows)] = square_crop_tensor(rows.permute(0, 3, 1, 2).contiguous(), size)
        return {}

    def content_key(self) -> str:
        """Return a hash of the file's path, size and time of change."""
        stat = os.stat(self.path)
        text = f"{self.path}\0{self.key}\0{stat.st_size}\0{stat.st_mtime_ns}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def array(self) -> NDArray[Any]:
        """Return the whole data set."""
        with _h5py().File(self.path, "r") as file:
            return np.asarray(file[self.key])


def _h5py() -> Any:
    return importlib.import_module("h5py")  # wanted by this one format, so not a dependency
