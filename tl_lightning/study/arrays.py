"""Arrays that a trial keeps beside its record, for figures: maps, images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from tl_lightning.errors import UserError

Arrays = dict[str, npt.NDArray[Any]]


def save_arrays(folder: Path, name: str, arrays: Mapping[str, npt.ArrayLike]) -> Path:
    """Write ``NAME.npz`` into a trial's folder at once.

    Args:
        folder: The trial's folder.
        name: Name of the file, without ending.
        arrays: What to keep, by name.

    Raises:
        UserError: The folder cannot be written.
    """
    path, temporary = folder / f"{name}.npz", folder / f".{name}.npz.tmp"
    kept: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez_compressed(file, **kept)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def load_arrays(folder: Path, name: str) -> Arrays | None:
    """Return what ``save_arrays`` kept, or None where there is nothing that can be read."""
    try:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
