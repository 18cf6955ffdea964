"""Find the images of ``root/{train,val,test}/<class>/*`` or ``root/<class>/*``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tl_lightning.data.decoding import EXTENSIONS
from tl_lightning.data.images import RawPart, RawSet
from tl_lightning.data.sources import FileSource
from tl_lightning.errors import UserError
from tl_lightning.paths import user_path

PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
LAYOUT = "ROOT/<class>/*.jpg or ROOT/{train,val,test}/<class>/*.jpg"


def load_image_folder(root: str | Path) -> RawSet:
    """List the images of a folder; labels are the sorted class folders' positions.

    Names that start with a dot and files without an image ending are left out. Folders below a class folder are
    searched too; a link to a folder is followed unless it leads to one that was already seen.

    Raises:
        UserError: The folder is missing or empty, has one class, a class has no images, or a part has a class that
            the training part lacks.
    """
    root = user_path(root)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"image folder {root} {what}; expected {LAYOUT}")
    folders = _part_folders(root)
    names = _class_names(folders["train"])
    if len(names) < 2:
        found = f"holds one class folder ({names[0]!r})" if names else "holds no class folders"
        raise UserError(f"image folder {folders['train']} {found}, but at least two are needed; expected {LAYOUT}")
    for part, folder in folders.items():
        extra = sorted(set(_class_names(folder)) - set(names))
        if extra:
            raise UserError(f"{part} folder {folder} has classes that the training part lacks: {', '.join(extra)}")
    return RawSet({part: _list_part(folder, names) for part, folder in folders.items()}, tuple(names))


def image_files(folder: str | Path) -> list[str]:
    """Return the sorted paths of all image files in a folder and below it."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    pending = [os.fspath(folder)]
    while pending:
        current = pending.pop()
        stat = os.stat(current)
        if (stat.st_dev, stat.st_ino) in seen:  # a link back to a folder above, or a second way to one
            continue
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    pending.append(entry.path)
                elif entry.name.lower().endswith(EXTENSIONS) and os.path.isfile(entry.path):
                    found.append(entry.path)
    return sorted(found)


def _part_folders(root: Path) -> dict[str, Path]:
    below = {name.lower(): root / name for name in _class_names(root)}
    folders = {
        part: next(below[alias] for alias in aliases if alias in below)
        for part, aliases in PART_NAMES.items()
        if any(alias in below for alias in aliases)
    }
    if set(folders) == {"train"} and len(below) > 1:
        return {"train": root} if _is_class(root, folders["train"], below) else folders
    if "train" in folders:
        return folders
    if below and all(name.startswith(("train", "val", "test")) for name in below):
        raise UserError(f"image folder {root} has {', '.join(sorted(below))} but no train folder; expected {LAYOUT}")
    return {"train": root}


def _is_class(root: Path, train: Path, below: dict[str, Path]) -> bool:
    """Whether a folder named train is a class (of trains) beside the other classes and not the training part."""
    others = [folder.name for folder in below.values() if folder != train and image_files(folder)]
    if others and _class_names(train):
        raise UserError(
            f"image folder {root}: {train.name} can be the training part or a class beside {', '.join(others)}; "
            f"expected {LAYOUT}"
        )
    return bool(others)


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if _is_folder(entry) and not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry[str] | Path) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _list_part(folder: Path, names: list[str]) -> RawPart:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            continue  # a class may be missing from val or test
        files = image_files(folder / name)
        if not files:
            raise UserError(f"class folder {folder / name} holds no images ({', '.join(EXTENSIONS)})")
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"image folder {folder} holds no images; expected {LAYOUT}")
    return RawPart(FileSource(paths), np.asarray(labels, dtype=np.int64))
