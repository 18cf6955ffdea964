"""Generated image folders for the tests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Return a smooth colour picture of (height, width), another for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def write_folder(root: Path, classes: Mapping[str, int], size: tuple[int, int] = (24, 20), ending: str = "png") -> Path:
    """Write ``root/<class>/<number>.<ending>``."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for image in range(count):
            picture(1000 * number + image, size).save(root / name / f"{image:03d}.{ending}")
    return root


def write_bomb(path: Path, width: int, height: int) -> None:
    """Write a PNG of a few bytes that says it holds so many pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
