"""Find and read pairs of image and mask: ``root/{train,val,test}/{images,masks}`` or ``root/{images,masks}``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_lightning.data.decoding import EXTENSIONS
from tl_lightning.data.folder import PART_NAMES
from tl_lightning.errors import UserError

VOID = 255
LAYOUT = "ROOT/{train,val,test}/{images,masks}/* or ROOT/{images,masks}/*, with equal names but for the ending"


@dataclass(frozen=True)
class MaskClasses:
    """Which class every pixel value of a mask stands for.

    Args:
        names: Class names; the class of a pixel is the position in it.
        values: The pixel value of each class, as many as names.
        void: Pixel values that are no class: they count neither in the loss nor in the metrics.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    void: tuple[int, ...] = (VOID,)

    def translate(self, mask: NDArray[np.uint8], path: object) -> NDArray[np.uint8]:
        """Return the mask with classes in place of pixel values, 255 for void.

        Raises:
            UserError: A pixel value is neither a class nor void; names the file.
        """
        table = np.full(256, 254, np.uint8)
        table[list(self.void)] = VOID
        table[list(self.values)] = np.arange(len(self.values))
        translated = table[mask]
        if (translated == 254).any():
            unknown = np.unique(mask[translated == 254])
            raise UserError(
                f"mask {path} has unknown class ids {', '.join(map(str, unknown))}; the classes are "
                f"{_span(self.values)} and void is {', '.join(map(str, self.void))}"
            )
        return translated


def find_pairs(root: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Return the pairs of image and mask in every part, sorted by name.

    Raises:
        UserError: The folder has another layout, holds no images, or an image has no mask.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected {LAYOUT}")
    folders = {part: root / name for part, names in PART_NAMES.items() for name in names if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    return {part: _pairs(folder) for part, folder in folders.items()}


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    images, masks = (_files(folder / name) for name in ("images", "masks"))
    if not images:
        raise UserError(f"{folder / 'images'} holds no images; expected {LAYOUT}")
    for stem, path in images.items():
        if stem not in masks:
            raise UserError(f"image {path} has no mask in {folder / 'masks'}")
    return [(path, masks[stem]) for stem, path in images.items()]


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected {LAYOUT}")
    paths = sorted(path for path in folder.iterdir() if path.name.lower().endswith(EXTENSIONS))
    return by_stem(path for path in paths if not path.name.startswith("."))


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Return files by their name without ending.

    Raises:
        UserError: Two have the same.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path.name} have the same name but for the ending: remove one")
        found[path.stem] = path
    return found


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Return the pixel values of a mask, uint8 [H, W]; palette images give their indices.

    Raises:
        UserError: The file cannot be read or holds colours in place of class ids.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1", "I", "I;16"):
                raise UserError(f"mask {path} is a colour image ({image.mode}); class ids in one channel are needed")
            values = np.asarray(image)
    except UserError:
        raise
    except Exception as error:  # Pillow's plug-ins raise half a dozen types for damaged files
        raise UserError(f"cannot read mask {path}: {error}") from error
    if values.size and not 0 <= values.min() <= values.max() <= 255:
        raise UserError(f"mask {path} has class ids from {values.min()} to {values.max()}; 0 to 255 is possible")
    return values.astype(np.uint8)


def mask_classes(root: Path, masks: Iterable[Path], names: Sequence[str] | None, void: Sequence[int]) -> MaskClasses:
    """Return the classes of a mask folder.

    Args:
        root: The folder; ``classes.txt`` in it names the classes, one a line.
        masks: The training masks, read when neither ``names`` nor ``classes.txt`` says what the classes are.
        names: Class names, in the order of their ids, void ids left out.
        void: Pixel values that are no class.

    Raises:
        UserError: A mask cannot be read, or there are fewer than two classes.
    """
    void = tuple(dict.fromkeys((*void, VOID)))
    if names is None and (root / "classes.txt").is_file():
        names = [line.strip() for line in (root / "classes.txt").read_text().splitlines() if line.strip()]
    if names is not None:
        values = [value for value in range(256) if value not in void][: len(names)]
        _check_two_classes(root, masks, void)
    else:
        present = np.zeros(256, bool)
        for path in masks:
            present[read_mask(path)] = True
        values = [int(value) for value in np.flatnonzero(present) if value not in void]
        names = [f"class {value}" for value in values]
    if len(values) < 2:
        raise UserError(
            f"{root}: segmentation needs at least two classes besides void, found {_span(values) or 'none'}"
        )
    return MaskClasses(tuple(names), tuple(values), void)


def _check_two_classes(root: Path, masks: Iterable[Path], void: Sequence[int]) -> None:
    """Refuse masks in which all but one class are void, as where 0 and 255 stand for background and object."""
    seen: set[int] = set()
    for path in masks:
        seen |= set(np.unique(read_mask(path)).tolist()) - set(void)
        if len(seen) > 1:
            return
    raise UserError(
        f"{root}: all training masks hold {_span(sorted(seen)) or 'nothing'} and else only void "
        f"({', '.join(map(str, void))}); classes must be numbered 0, 1, ..."
    )


def _span(values: Sequence[int]) -> str:
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))
