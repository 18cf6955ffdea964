"""Miniature annotated sets in the formats of the field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pictures import picture
from PIL import Image

Box = tuple[float, float, float, float]
SIZE = (40, 60)  # height and width of every image


def voc_xml(name: str, objects: Sequence[tuple[str, Box]], *, size: tuple[int, int] = SIZE, difficult: int = 0) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    entries = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{c}>{v}</{c}>" for c, v in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for label, box in objects
    )
    stated = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{stated}{entries}</annotation>"


def write_voc(root: Path, images: int = 10, splits: dict[str, Sequence[int]] | None = None) -> Path:
    """Write images of SIZE with one ``cell`` each, and a ``dot`` in every second, at places that tell the number."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for k in range(images):
        objects = [("cell", (k, 5, k + 20, 25)), ("dot", (30, 10, 40, 20))][: 1 + k % 2]
        picture(k, SIZE).save(root / "JPEGImages" / f"{k:02d}.jpg")
        (root / "Annotations" / f"{k:02d}.xml").write_text(voc_xml(f"{k:02d}.jpg", objects))
    for part, members in (splits or {}).items():
        lines = "".join(f"{k:02d}\n" for k in members)
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(lines)
    return root


def coco_content(images: int = 6) -> dict[str, list[dict[str, object]]]:
    """Return annotations of images of SIZE; category ids are neither dense nor in order, as in COCO."""
    return {
        "images": [
            {"id": 100 + k, "file_name": f"{k:02d}.png", "height": SIZE[0], "width": SIZE[1]} for k in range(images)
        ],
        "categories": [{"id": 7, "name": "dot"}, {"id": 3, "name": "cell"}],
        "annotations": [
            {"id": k, "image_id": 100 + k, "category_id": (3, 7)[k % 2], "bbox": [k, 5, 20, 10], "iscrowd": int(k == 4)}
            for k in range(images)
        ],
    }


def write_coco(
    root: Path, content: dict[str, list[dict[str, object]]] | None = None, json_name: str = "annotations.json"
) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    content = coco_content() if content is None else content
    for k in range(len(coco_content()["images"])):
        picture(k, SIZE).save(root / "images" / f"{k:02d}.png")
    (root / json_name).parent.mkdir(parents=True, exist_ok=True)
    (root / json_name).write_text(json.dumps(content))
    return root


def write_masks(root: Path, count: int = 6, values: Sequence[int] = (0, 1, 2), first: int = 0) -> Path:
    """Write ``root/{images,masks}`` with masks of vertical stripes of the given values."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    stripes = np.array(values, np.uint8)[np.arange(SIZE[1]) * len(values) // SIZE[1]]
    for k in range(first, first + count):
        picture(k, SIZE).save(root / "images" / f"{k:02d}.jpg")
        Image.fromarray(np.tile(np.roll(stripes, k), (SIZE[0], 1))).save(root / "masks" / f"{k:02d}.png")
    return root
