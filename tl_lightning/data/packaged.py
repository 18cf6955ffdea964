"""Data sets that come with Python packages, so that they need no download: ELPV and scikit-learn's digits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from tl_lightning.data.images import RawPart, RawSet
from tl_lightning.data.sources import ArraySource, FileSource
from tl_lightning.errors import UserError


def load_elpv(root: Path | None) -> RawSet:
    """Load the electroluminescence images of solar cells: label 1 (defective) when the defect probability >= 0.5.

    Splits keep the mixture of label and cell type (mono- or polycrystalline), as in Deitsch et al. 2019, "Automatic
    Classification of Defective Photovoltaic Module Cells in Electroluminescence Images".

    Args:
        root: Folder with ``labels.csv`` and the images; by default that of the installed ``elpv_dataset`` package.

    Raises:
        UserError: The package is not installed, or the folder lacks ``labels.csv``.
    """
    folder = root if root is not None else _elpv_folder()
    table = folder / "labels.csv"
    if not table.is_file():
        raise UserError(f"{table} does not exist; leave the data directory out to use the elpv-dataset package")
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    paths = [str(folder / name) for name, _, _ in rows]
    labels = np.asarray([float(probability) >= 0.5 for _, probability, _ in rows]).astype(np.int64)
    poly = np.asarray([kind == "poly" for _, _, kind in rows]).astype(np.int64)
    part = RawPart(FileSource(paths, channels=1), labels, strata=2 * labels + poly)
    return RawSet({"train": part}, ("functional", "defective"))


def load_sklearn_digits(root: Path | None) -> RawSet:
    """Load scikit-learn's 1,797 handwritten digits, 8 x 8, grey values 0..16 scaled to 0..255; ``root`` is not used."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    part = RawPart(ArraySource(torch.from_numpy(images)[:, None]), digits.target.astype(np.int64))
    return RawSet({"train": part}, tuple(str(name) for name in digits.target_names))


def _elpv_folder() -> Path:
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise UserError('data set elpv needs the elpv-dataset package: pip install "tl_lightning[demo]"')
    return Path(spec.origin).parent / "data"
