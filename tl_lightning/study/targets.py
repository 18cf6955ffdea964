"""Target sets by a short text: a set or a folder of one's own, plain or under a domain shift."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tl_lightning.data import DATASETS
from tl_lightning.data.datasets import dataset_card
from tl_lightning.data.shifts import SHIFTS, check_shift
from tl_lightning.data.torchvision_sets import LOADERS as TORCHVISION
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.paths import user_path

SEVERITY = 3


@dataclass(frozen=True)
class Target:
    """A set of images to transfer to, shifted in all its parts.

    Attributes:
        text: What it was made from; its name in tables and figures.
        base: Name of the set without its shift; variants of one set share it.
        data: Name in ``DATASETS``.
        data_dir: Folder of the images.
        shift: Name in ``SHIFTS``.
        severity: Of the shift, 1 to 5.
    """

    text: str
    base: str
    data: str
    data_dir: str | None = None
    shift: str = "none"
    severity: int = SEVERITY

    def options(self) -> dict[str, Any]:
        """Return the arguments of ``TransferDataModule`` that make it."""
        return {
            "name": self.data,
            "data_dir": self.data_dir,
            "corruption": None if self.shift == "none" else self.shift,
            "severity": self.severity,
            "corrupt_parts": ("train", "val", "test"),
        }

    @property
    def num_classes(self) -> int:
        """Number of classes, without decoding an image."""
        return dataset_card(self.data).classes or len(_folder_classes(self.data_dir))


def parse_target(text: str, data_dir: str | None = None) -> Target:
    """Return the target of ``SET``, ``SET:SHIFT`` or ``SET:SHIFT:SEVERITY``, where SET is a name or a folder.

    Args:
        text: Such as ``digits``, ``elpv:invert``, ``elpv:gaussian_blur:4`` or ``~/leaves:fog:2``.
        data_dir: Folder of what torchvision downloads, for the sets by name.

    Raises:
        UserError: There is no such set, folder or shift, or the severity is not 1 to 5.
    """
    if text not in DATASETS and user_path(text).is_dir():  # a folder may have a colon in its name
        return _folder(text, text)
    first, *parts = text.split(":")
    severity = SEVERITY
    if parts and parts[-1].strip().lstrip("-").isdigit():
        severity = int(parts.pop())
        if not parts:
            raise UserError(f"target {text!r} has a severity without a shift: write {first}:SHIFT:{severity}")
    shift = parts.pop().strip() if parts else "none"
    name = ":".join([first, *parts]).strip()
    if shift not in SHIFTS:
        raise unknown_name(f"shift in target {text!r}", shift, SHIFTS)
    check_shift(shift, severity)
    if name in DATASETS and name != "imagefolder":
        return Target(text, name, name, data_dir if name in TORCHVISION else None, shift, severity)
    return _folder(text, data_dir if name == "imagefolder" and data_dir else name, shift, severity)


def _folder(text: str, name: str, shift: str = "none", severity: int = SEVERITY) -> Target:
    folder = user_path(name)
    if folder.is_dir():
        return Target(text, folder.name, "imagefolder", str(folder), shift, severity)
    if "/" in name or name.startswith((".", "~")):
        raise UserError(f"target {text!r}: there is no folder {name}")
    raise unknown_name("target", name, DATASETS)


def parse_targets(texts: list[str], data_dir: str | None = None) -> list[Target]:
    """Return the targets of several texts; one given twice raises `UserError`."""
    for text in texts:
        if texts.count(text) > 1:
            raise UserError(f"target {text!r} is given twice")
    return [parse_target(text, data_dir) for text in texts]


@lru_cache(maxsize=64)
def _folder_classes(folder: str | None) -> tuple[str, ...]:
    return dataset_card("imagefolder").load(Path(folder) if folder else None, False).class_names
