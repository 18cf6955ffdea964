"""Read a Pascal VOC folder: ``Annotations/*.xml``, ``JPEGImages/*`` and, where they exist, ``ImageSets/Main/*.txt``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from tl_lightning.data.annotations import AnnotatedImage, AnnotatedSet, numbered
from tl_lightning.data.decoding import EXTENSIONS
from tl_lightning.data.masks import by_stem
from tl_lightning.errors import UserError

LAYOUT = "ROOT/Annotations/*.xml, ROOT/JPEGImages/*.jpg and, for given splits, ROOT/ImageSets/Main/{train,val,test}.txt"

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Record:
    """One XML file as it stands."""

    source: Path
    filename: str
    size: tuple[int, int] | None
    names: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    difficult: tuple[bool, ...]


def read_voc(root: Path, class_names: Sequence[str] | None = None) -> AnnotatedSet:
    """Read the annotations of a Pascal VOC folder.

    The parts are those of ``ImageSets/Main``; ``trainval.txt`` serves where there is no ``train.txt``, and
    ``val.txt`` becomes the test part where there is no ``test.txt`` (Pascal VOC 2012 keeps its test annotations).
    Without lists, all images are one part. Coordinates are taken as edges in pixels, as torchvision's references do.

    Args:
        root: The folder.
        class_names: The classes in the order of their labels; by default the sorted ones of the training part.

    Raises:
        UserError: A folder, list, annotation or image is missing, an annotation is broken, or a class is unknown.
    """
    for folder in ("Annotations", "JPEGImages"):
        if not (root / folder).is_dir():
            raise UserError(f"{root / folder} is not a folder; expected {LAYOUT}")
    records = {part: [_read_xml(path) for path in files] for part, files in _part_files(root).items()}
    if class_names is None:
        class_names = sorted({name for record in records["train"] for name in record.names})
    images = _ImageFiles(root / "JPEGImages")
    parts = {part: tuple(_annotated(r, images, class_names) for r in found) for part, found in records.items()}
    return AnnotatedSet(parts, tuple(class_names))


def _part_files(root: Path) -> dict[str, list[Path]]:
    folder = root / "Annotations"
    lists = {part: root / "ImageSets" / "Main" / f"{part}.txt" for part in ("train", "val", "trainval", "test")}
    found = {part: path for part, path in lists.items() if path.is_file()}
    if "train" not in found and "trainval" not in found:
        files = sorted(folder.glob("*.xml"))
        if not files:
            raise UserError(f"{folder} holds no annotations; expected {LAYOUT}")
        return {"train": files}
    chosen = {"train": found.get("train") or found["trainval"]}
    if "test" in found:
        chosen["test"] = found["test"]
    if "val" in found and "train" in found:
        chosen["val" if "test" in found else "test"] = found["val"]
    return {part: [folder / f"{name}.xml" for name in _read_list(path)] for part, path in chosen.items()}


def _read_list(path: Path) -> list[str]:
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path} names no image")
    return names


def _read_xml(path: Path) -> _Record:
    try:
        root = ElementTree.parse(path).getroot()
        objects = root.findall("object")
        return _Record(
            source=path,
            filename=root.findtext("filename", "").strip(),
            size=_stated_size(root),
            names=tuple(_text(entry, "name") for entry in objects),
            boxes=tuple(tuple(float(_text(entry, f"bndbox/{c}")) for c in _CORNERS) for entry in objects),
            difficult=tuple(entry.findtext("difficult", "0").strip() == "1" for entry in objects),
        )
    except FileNotFoundError:
        raise UserError(f"annotation {path} does not exist, though ImageSets/Main names it") from None
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise UserError(f"annotation {path} is broken: {error}") from error


def _text(entry: ElementTree.Element, name: str) -> str:
    value = entry.findtext(name)
    if value is None or not value.strip():
        raise ValueError(f"an object has no {name}")
    return value.strip()


def _stated_size(root: ElementTree.Element) -> tuple[int, int] | None:
    height, width = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    return (height, width) if height and width else None


class _ImageFiles:
    """The files of a folder by name and by name without ending, listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(EXTENSIONS)]
        self._by_name = {path.name: path for path in paths}
        self._by_stem = by_stem(paths)

    def find(self, record: _Record) -> Path:
        """Return the image with the annotation's own name, or else with the name that the annotation states."""
        path = self._by_stem.get(record.source.stem) or self._by_name.get(record.filename)
        if path is None:
            stated = record.filename or record.source.stem
            raise UserError(f"annotation {record.source} names image {stated!r}, which is not in {self.folder}")
        return path


def _annotated(record: _Record, images: _ImageFiles, class_names: Sequence[str]) -> AnnotatedImage:
    return AnnotatedImage(
        path=images.find(record),
        source=record.source,
        boxes=np.array(record.boxes, np.float32).reshape(-1, 4),
        labels=numbered(record.names, class_names, record.source),
        crowd=np.array(record.difficult, bool),
        size=record.size,
    )
