"""Images without labels, for prediction: the files of a folder, and what a table of predictions calls its images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tl_lightning.data.decoding import EXTENSIONS, image_shape
from tl_lightning.data.dense_sources import Size, read_image, resized
from tl_lightning.data.folder import image_files
from tl_lightning.data.images import ImageSet
from tl_lightning.data.pixels import StreamedPixels
from tl_lightning.data.sources import FileSource, available_cores
from tl_lightning.errors import UserError
from tl_lightning.paths import user_path


@dataclass(frozen=True)
class PredictedImages:
    """The images that are predicted, in the order of the batches' ``index``.

    Attributes:
        names: Path of each image, or its position in the published part where it has no file.
        are_files: Whether the names are paths.
    """

    names: tuple[str, ...]
    are_files: bool

    def shape(self, position: int) -> tuple[int, int] | None:
        """Return (height, width) of an image's file, upright; None without a file."""
        return image_shape(self.names[position]) if self.are_files else None


def unlabelled_files(folder: str | Path) -> list[str]:
    """Return the sorted paths of all images in a folder and below it.

    Raises:
        UserError: There is no such folder, or no image in it.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"predict_dir {folder} {what}; name a folder of images")
    files = image_files(folder)
    if not files:
        raise UserError(f"predict_dir {folder} holds no images ({', '.join(EXTENSIONS)})")
    return files


def unlabelled_images(
    paths: Sequence[str], channels: int, size: int, *, skip_bad: bool = False
) -> tuple[ImageSet, PredictedImages]:
    """Return images that are read from their files when they are needed, with -1 for every label, and their names.

    Args:
        paths: The files.
        channels: 3 for RGB, 1 for grey.
        size: Side of the square in pixels; smaller images keep their own size.
        skip_bad: Read every image once beforehand and leave out those that cannot be read.
    """
    source = FileSource(paths, channels)
    pixels = StreamedPixels(source, min(size, source.native_size()), skip_bad)
    positions = np.arange(len(paths))
    kept = positions[~np.isin(positions, list(pixels.prepare(positions)))]
    if not len(kept):
        raise UserError(f"none of the {len(paths)} images to predict can be read")
    names = PredictedImages(tuple(source.paths[position] for position in kept), True)
    return ImageSet(pixels, torch.full((len(kept),), -1), (), torch.from_numpy(kept)), names


class UnlabelledSet:
    """Images for detection or segmentation, read and resized when they are needed, whatever their aspect ratio.

    Args:
        paths: The files.
        size: (height, width) in pixels.
    """

    def __init__(self, paths: Sequence[str], size: Size) -> None:
        self.paths = tuple(paths)
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return ``image`` uint8 [B, 3, H, W] and ``index``.

        Raises:
            UserError: An image cannot be read.
        """
        with ThreadPoolExecutor(available_cores()) as pool:
            images = list(pool.map(self._read, index.tolist()))
        return {"image": torch.stack([torch.from_numpy(image) for image in images]), "index": index}

    def _read(self, position: int) -> np.ndarray:
        return resized(read_image(Path(self.paths[position])), self.size)
