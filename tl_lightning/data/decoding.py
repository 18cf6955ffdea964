"""Read one image file into uint8 pixels, whatever the file holds, or say why it cannot be used.

How each kind of file is read:

* the format is recognised by content, so a PNG named ``.jpg`` is read as a PNG; only JPEG, PNG, BMP, PPM, TIFF,
  WebP and GIF are tried;
* EXIF orientation is applied; of an animated file the first frame is used;
* palette, CMYK and other colour spaces are converted to RGB (no ICC profile is applied);
* transparent pixels are laid over white;
* 16-bit grey is scaled from 0..65535 to 0..255; float pixels must lie in 0..1;
* truncated, empty and unreadable files, and files of more than 89 million pixels, are refused.

Resizing follows ``torchvision.transforms``: shorter side to the wanted size (bilinear, antialias), then centre crop.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp", ".gif")
MAX_PIXELS = 89_478_485  # Pillow's own warning limit: a quarter of a gibibyte as RGB

_EXIF_ORIENTATION = 0x0112


class BadImageError(Exception):
    """An image file that cannot be used.

    Args:
        path: The file.
        reason: Why, in a few words.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.path}: {self.reason}"


def image_shape(path: str | Path) -> tuple[int, int]:
    """Return (height, width) in pixels from the file's header, orientation applied.

    Raises:
        BadImageError: The header cannot be read.
    """
    try:
        with _open(path) as image:
            if image.format == "TIFF":  # Pillow turns these by itself when it decodes them, the newest before that
                image = _upright(image)
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(path, _reason(error)) from error
    return (width, height) if turned else (height, width)


def read_rgb(path: str | Path) -> Image.Image:
    """Return an image file as RGB in its own size, upright.

    Raises:
        BadImageError: The file cannot be used; says why.
    """
    try:
        with _open(path) as image:
            return _to_mode(_upright(image), "RGB")
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(path, _reason(error)) from error


def decode_image(path: str | Path, size: int, channels: int = 3) -> NDArray[np.uint8]:
    """Return the image as uint8 [channels, size, size].

    Args:
        path: The file.
        size: Side of the square in pixels; the shorter side is resized to it, the longer one cropped at the centre.
        channels: 3 for RGB, 1 for grey.

    Raises:
        BadImageError: The file cannot be used; says why.
    """
    try:
        with _open(path) as image:
            square = square_crop(_to_mode(_upright(image), "L" if channels == 1 else "RGB"), size)
            pixels = np.asarray(square)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's plug-ins raise half a dozen types for damaged files
        raise BadImageError(path, _reason(error)) from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def square_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size`` (bilinear, antialias) and crop the centre to ``size`` x ``size``."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short != size:
        long = max(size, int(size * long / short))
        width, height = (size, long) if width <= height else (long, size)
        if long > MAX_PIXELS // size:
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels is too elongated")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) == (size, size):
        return image
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _open(path: str | Path) -> Image.Image:
    if os.stat(path).st_size == 0:
        raise BadImageError(path, "the file is empty")
    image = Image.open(path, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise BadImageError(path, f"{width} x {height} pixels is more than the {MAX_PIXELS:,} allowed")
    return image


def _upright(image: Image.Image) -> Image.Image:
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        return ImageOps.exif_transpose(image)
    return image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image).convert(mode)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
        return image.convert("RGB") if mode == "RGB" else image.convert("RGB").convert(mode)
    return image.convert(mode)


def _deep_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit or float grey to 8 bits; Pillow's own conversion would clip it at 255."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("float pixels outside 0..1")
        values = values * 65535
    elif values.min() < 0 or values.max() > 65535:
        raise ValueError("integer pixels outside 0..65535")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a JPEG, PNG, BMP, PPM, TIFF, WebP or GIF image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than the {MAX_PIXELS:,} pixels allowed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
