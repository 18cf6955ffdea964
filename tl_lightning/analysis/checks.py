"""Arrays as the measures want them: NumPy, on the host, finite, of the right shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tl_lightning.errors import UserError

Array = npt.ArrayLike | torch.Tensor
Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]


def as_numpy(array: Array) -> npt.NDArray[Any]:
    """Return a NumPy array for a NumPy array, a sequence or a tensor of any device and type."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy()
    return np.asarray(array)


def as_features(array: Array, name: str = "features") -> npt.NDArray[np.float64]:
    """Return features as float64 [n, d]; trailing dimensions are flattened, a vector counts as one feature.

    Raises:
        UserError: There are no rows or columns, or a value is not a finite number.
    """
    values = as_numpy(array)
    if values.ndim == 0 or values.size == 0:
        raise UserError(f"{name} must hold at least one row and one column, not shape {list(values.shape)}")
    values = values.reshape(len(values), -1).astype(np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise UserError(f"{name} of shape {list(values.shape)} hold {bad} values that are not finite numbers")
    return values


def as_paired_features(first: Array, second: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return two feature arrays of the same examples; see ``as_features``.

    Raises:
        UserError: They differ in the number of rows.
    """
    x, y = as_features(first, "the first features"), as_features(second, "the second features")
    if len(x) != len(y):
        raise UserError(f"features of the same examples are needed, but there are {len(x)} and {len(y)} rows")
    return x, y


def as_labels(array: Array, rows: int, name: str = "labels") -> Labels:
    """Return class labels as int64 [rows], renumbered to 0 .. classes - 1 in sorted order.

    Raises:
        UserError: Another number of labels, labels that are no whole numbers, or fewer than two classes.
    """
    labels = _whole_numbers(array, rows, name)
    classes, numbered = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"{name} must hold at least two classes, not only class {classes[0]}")
    return numbered.astype(np.int64)


def as_classes(array: Array, rows: int, name: str = "labels") -> Labels:
    """Return class labels as int64 [rows], as they are; see ``as_labels``."""
    return _whole_numbers(array, rows, name).astype(np.int64)


def _whole_numbers(array: Array, rows: int, name: str) -> npt.NDArray[Any]:
    labels = as_numpy(array)
    if labels.shape != (rows,) or rows == 0:
        raise UserError(f"{name} must be one number for each of the {rows} rows, not shape {list(labels.shape)}")
    if not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise UserError(f"{name} must be whole numbers")
    return labels
