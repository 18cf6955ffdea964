"""Turn the chosen images of every part into image sets: shifted, decoded, without unreadable ones, labels noised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from tl_lightning.data import splits
from tl_lightning.data.images import ImageSet, RawPart
from tl_lightning.data.partition import PARTS, Part
from tl_lightning.data.shifted import ShiftedSource
from tl_lightning.data.sources import PixelSource
from tl_lightning.data.store import Storage, open_pixels
from tl_lightning.errors import UserError

Chosen = Mapping[Part, tuple[RawPart, splits.Ints]]


@dataclass(frozen=True)
class Shift:
    """A domain shift of some parts; its draws do not depend on the trial's seed, so that all are tested alike."""

    name: str
    severity: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Assembled:
    """Image sets by part, the source of each, and the number of unreadable images that were left out."""

    sets: dict[Part, ImageSet]
    sources: dict[Part, PixelSource]
    skipped: int


def assemble(
    chosen: Chosen,
    class_names: tuple[str, ...],
    size: int,
    storage: Storage,
    *,
    shift: Shift | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    label_noise: float = 0.0,
    seed: int = 0,
) -> Assembled:
    """Decode the chosen images; parts that share a source are decoded in one go.

    Args:
        chosen: Every part's published part and the sorted positions in it.
        class_names: The name of every label.
        size: Side of the squares in pixels.
        storage: How decoded images may be kept.
        shift: Domain shift, if any.
        on_bad_image: Whether an unreadable image is an error or left out.
        label_noise: Part of the training labels to replace.
        seed: Of the label noise.

    Raises:
        UserError: An image cannot be read, or a part or a training class is left without images.
    """
    sources = _sources(chosen, shift)
    sets: dict[Part, ImageSet] = {}
    skipped = 0
    for source in {id(source): source for source in sources.values()}.values():
        sharing = [part for part in PARTS if sources[part] is source]
        wanted = np.unique(np.concatenate([chosen[part][1] for part in sharing]))
        pixels, failures = open_pixels(source, size, wanted, storage)
        if failures and on_bad_image == "error":
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            hint = "repair or remove it, or leave such images out (--on-bad-image skip)"
            raise UserError(f"{failures[min(failures)]}{more}; {hint}")
        skipped += len(failures)
        for part in sharing:
            raw_part, positions = chosen[part]
            positions = positions[~np.isin(positions, list(failures))]
            labels = raw_part.labels[positions]
            _check_labels(part, labels, class_names)
            if part == "train" and label_noise:
                labels = splits.with_label_noise(labels, label_noise, len(class_names), seed)
            sets[part] = ImageSet(pixels, torch.from_numpy(labels), class_names, torch.from_numpy(positions))
    return Assembled(sets, sources, skipped)


def _sources(chosen: Chosen, shift: Shift | None) -> dict[Part, PixelSource]:
    sources: dict[Part, PixelSource] = {}
    shifted: dict[int, PixelSource] = {}
    for part, (raw_part, _) in chosen.items():
        sources[part] = raw_part.source
        if shift is not None and part in shift.parts:
            fresh = ShiftedSource(raw_part.source, shift.name, shift.severity)
            sources[part] = shifted.setdefault(id(raw_part.source), fresh)
    return sources


def _check_labels(part: Part, labels: splits.Ints, class_names: tuple[str, ...]) -> None:
    if not len(labels):
        raise UserError(f"the {part} part holds no readable images")
    counts = np.bincount(labels, minlength=len(class_names))
    if part == "train" and not counts.all():
        raise UserError(f"class {class_names[int(counts.argmin())]!r} has no readable training images")
