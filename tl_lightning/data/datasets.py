"""The registry of image classification sets, with a card for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tl_lightning.data.folder import LAYOUT, load_image_folder
from tl_lightning.data.images import RawSet
from tl_lightning.data.packaged import load_elpv, load_sklearn_digits
from tl_lightning.errors import UserError, unknown_name

Loader = Callable[[Path | None, bool], RawSet]


@dataclass(frozen=True)
class DatasetCard:
    """What one should know of a data set before transferring to it.

    Args:
        name: Name in the registry.
        classes: Number of classes; None where the user's folder decides.
        train_images: Images in the published training part (the whole set where none is published); None as above.
        native_size: Shorter side in pixels (a typical one where it varies); None as above.
        channels: 1 for grey, 3 for RGB.
        imagenet_overlap: What the set shares with ImageNet-1k, in words.
        overlapping_classes: Number of its classes that ImageNet-1k also names, None where unknown.
        licence: Terms of use.
        source: Paper and page.
        load: ``load(data_dir, download)`` returns the set as published.
    """

    name: str
    classes: int | None
    train_images: int | None
    native_size: int | None
    channels: int
    imagenet_overlap: str
    overlapping_classes: int | None
    licence: str
    source: str
    load: Loader


def dataset_card(name: str) -> DatasetCard:
    """Return the card of a data set.

    Raises:
        UserError: There is no set of that name; the nearest names are suggested.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]


def _load_imagefolder(root: Path | None, download: bool) -> RawSet:
    if root is None:
        raise UserError(f"data set imagefolder needs a data directory (--data-dir ROOT): {LAYOUT}")
    return load_image_folder(root)


def _load_elpv(root: Path | None, download: bool) -> RawSet:
    return load_elpv(root)


def _load_digits(root: Path | None, download: bool) -> RawSet:
    return load_sklearn_digits(root)


_CARDS = [
    DatasetCard(
        name="elpv",
        classes=2,
        train_images=2624,
        native_size=300,
        channels=1,
        imagenet_overlap="none: electroluminescence images of solar cells, far from photographs",
        overlapping_classes=0,
        licence="CC BY-NC-SA 4.0",
        source="Deitsch et al. 2019, Solar Energy 185; https://github.com/zae-bayern/elpv-dataset",
        load=_load_elpv,
    ),
    DatasetCard(
        name="digits",
        classes=10,
        train_images=1797,
        native_size=8,
        channels=1,
        imagenet_overlap="none: handwritten digits",
        overlapping_classes=0,
        licence="CC BY 4.0",
        source="Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits; sklearn.datasets.load_digits",
        load=_load_digits,
    ),
    DatasetCard(
        name="imagefolder",
        classes=None,
        train_images=None,
        native_size=None,
        channels=3,
        imagenet_overlap="unknown: your own images",
        overlapping_classes=None,
        licence="your own",
        source=LAYOUT,
        load=_load_imagefolder,
    ),
]

DATASETS: dict[str, DatasetCard] = {card.name: card for card in _CARDS}
