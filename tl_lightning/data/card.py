"""What one should know of a data set before transferring to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tl_lightning.data.images import RawSet

Loader = Callable[[Path | None, bool], RawSet]


@dataclass(frozen=True)
class DatasetCard:
    """One data set's card.

    Args:
        name: Name in the registry.
        classes: Number of classes; None where the user's folder decides.
        train_images: Images in the published training part (the whole set where none is published); None as above.
        native_size: Shorter side in pixels (the smallest or a typical one where it varies); None as above.
        channels: 1 for grey, 3 for RGB.
        imagenet_overlap: What the set shares with ImageNet-1k, in words.
        overlapping_classes: Number of its classes that ImageNet-1k also names (counted by hand); None where unclear.
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
