"""What a file of activations looks like: a plain .npy file, and a .json beside it that says what it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT = 1
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
_ID_LENGTH = 32  # hexadecimal digits of the id of an image


@dataclass(frozen=True)
class Description:
    """The side file of a data file; it is written last, so that what it describes is complete."""

    format: int
    version: str
    group: str
    file: str
    size: int
    sha256: str
    dtype: str
    ids: str

    def text(self) -> str:
        """Return the JSON text, which holds its own checksum."""
        content = asdict(self)
        return json.dumps({**content, "check": _digest(content)}, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> Description:
        """Read the JSON text.

        Raises:
            ValueError: It is damaged.
        """
        content = json.loads(text)
        check = content.pop("check")
        if check != _digest(content):
            raise ValueError("its own checksum differs")
        return cls(**content)

    @property
    def id_list(self) -> list[str]:
        """The ids of the rows."""
        return [self.ids[i : i + _ID_LENGTH] for i in range(0, len(self.ids), _ID_LENGTH)]


@dataclass(frozen=True)
class Segment:
    """Activations of some images.

    Attributes:
        ids: The ids of the images, 32 hexadecimal digits each.
        values: [len(ids), ...], in memory or memory-mapped.
    """

    ids: Sequence[str]
    values: Tensor


def data_file(path: Path) -> Path:
    """Return the data file that belongs to a description."""
    return path.with_suffix(".npy")


def to_array(values: Tensor) -> np.ndarray:
    """Return a CPU tensor as an array of the dtype that is written."""
    values = values.contiguous()
    return values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()


def to_tensor(array: np.ndarray, dtype: str) -> Tensor:
    """Return an array that was read as a tensor of the dtype that was written."""
    values = torch.from_numpy(array)
    return values.view(torch.bfloat16) if dtype == "bfloat16" else values


def megabytes(size: int) -> str:
    """Return a size in bytes for a message."""
    return f"{size / 2**20:.1f} MB"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
