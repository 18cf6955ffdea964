"""Read COCO detection annotations: one JSON file a part, with images, annotations and categories."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_lightning.data.annotations import AnnotatedImage, AnnotatedSet
from tl_lightning.errors import UserError, unknown_name

LAYOUT = (
    "ROOT/annotations/instances_{train,val,test}*.json with ROOT/{train,val,test}*/, "
    "ROOT/{train,valid,test}/_annotations.coco.json with the images beside it, or ROOT/*.json with ROOT/images/"
)

_PART_PATTERNS = {"train": "train", "val": "val", "test": "test"}


def read_coco(root: Path, class_names: Sequence[str] | None = None) -> AnnotatedSet:
    """Read the annotations of a folder in COCO format.

    Where there are files for ``train`` and ``val`` only, ``val`` becomes the test part (COCO keeps its test
    annotations). A single file is one part. Categories are numbered in the order of their ids.

    Args:
        root: The folder.
        class_names: Use these categories only, in this order; by default all that the training part lists.

    Raises:
        UserError: A file is missing or broken, an annotation names an image or category that is not listed, or an
            image file does not exist.
    """
    files = _part_files(root)
    contents = {part: _load(path) for part, path in files.items()}
    known = _categories(contents["train"], files["train"])
    if class_names is None:
        class_names = [known[key] for key in sorted(known)]
    for name in class_names:
        if name not in known.values():
            raise unknown_name(f"class of {files['train']}", name, known.values())
    parts = {part: _part(contents[part], path, root, tuple(class_names)) for part, path in files.items()}
    return AnnotatedSet(parts, tuple(class_names))


def _part_files(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected {LAYOUT}")
    found: dict[str, Path] = {}
    for part, stem in _PART_PATTERNS.items():
        patterns = (
            f"annotations/instances_{stem}*.json",
            f"annotations/{stem}*.json",
            f"{stem}*/_*.json",
            f"{stem}*.json",
        )
        candidates = [path for pattern in patterns for path in sorted(root.glob(pattern))]
        if candidates:
            found[part] = candidates[0]
    if "train" not in found:
        single = sorted(root.glob("*.json")) + sorted(root.glob("annotations/*.json"))
        if len(single) != 1:
            what = f"{len(single)} JSON files, none for train" if single else "no JSON file"
            raise UserError(f"{root} holds {what}; expected {LAYOUT}")
        return {"train": single[0]}
    if "val" in found and "test" not in found:
        found["test"] = found.pop("val")
    return found


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"annotation file {path} is broken: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"annotation file {path} has no list {key!r}: it is not in COCO's detection format")
    return content


def _categories(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    try:
        return {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"annotation file {path}: a category without id or name ({error})") from error


def _part(
    content: Mapping[str, Any], path: Path, root: Path, class_names: tuple[str, ...]
) -> tuple[AnnotatedImage, ...]:
    number = {name: k for k, name in enumerate(class_names, start=1)}
    labels = {key: number.get(name, 0) for key, name in _categories(content, path).items()}
    objects: dict[Any, list[tuple[list[float], int, bool]]] = {}
    try:
        objects = {entry["id"]: [] for entry in content["images"]}
        for entry in content["annotations"]:
            _add(entry, objects, labels, path)
        folders = _image_folders(path, root)
        return tuple(_annotated(entry, objects[entry["id"]], path, folders) for entry in content["images"])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"annotation file {path} is broken: {type(error).__name__} {error}") from error


def _add(
    entry: Mapping[str, Any],
    objects: dict[Any, list[tuple[list[float], int, bool]]],
    labels: dict[int, int],
    path: Path,
) -> None:
    where = f"annotation file {path}: annotation {entry.get('id')}"
    if entry["image_id"] not in objects:
        raise UserError(f"{where} is of image {entry['image_id']!r}, which the file does not list")
    if entry["category_id"] not in labels:
        raise UserError(f"{where} is of category {entry['category_id']!r}, which the file does not list")
    x, y, width, height = (float(value) for value in entry["bbox"])
    label = labels[entry["category_id"]]
    if label:
        objects[entry["image_id"]].append(([x, y, x + width, y + height], label, bool(entry.get("iscrowd", 0))))


def _image_folders(path: Path, root: Path) -> list[Path]:
    """Return where images may lie: beside the file, in ``images``, or in a folder named after the part."""
    stem = path.stem.removeprefix("instances_")
    named = [root / stem, root / "images" / stem]
    return [folder for folder in (path.parent, *named, root / "images", root) if folder.is_dir()]


def _annotated(
    entry: Mapping[str, Any], objects: list[tuple[list[float], int, bool]], path: Path, folders: Iterable[Path]
) -> AnnotatedImage:
    name = str(entry["file_name"])
    image = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if image is None:
        raise UserError(
            f"annotation file {path} names image {name!r}, which is in none of {', '.join(map(str, folders))}"
        )
    size = (int(entry["height"]), int(entry["width"])) if entry.get("height") and entry.get("width") else None
    return AnnotatedImage(
        path=image,
        source=path,
        boxes=np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        labels=np.array([label for _, label, _ in objects], np.int64),
        crowd=np.array([crowd for _, _, crowd in objects], bool),
        size=size,
    )
