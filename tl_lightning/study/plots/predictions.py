"""Boxes and masks drawn on their images: what is there, and what models say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tl_lightning.errors import UserError
from tl_lightning.study.dense_examples import DenseExamples, Objects
from tl_lightning.study.plots.pictures import Picture, picture_rows
from tl_lightning.study.plots.style import COLOURS

# Found by search: with red-green blindness (Machado et al. 2009) and without it, each two of the first 11 lie 33 units
# of CIE Lab apart or more, all 16 of them 19. None is black or grey, as these hide in images.
PALETTE = (
    *("#FFEE11", "#5500FF", "#22FFFF", "#884411", "#335599", "#77CC99", "#CC8800", "#44BBFF", "#AAFF88", "#4477FF"),
    *("#993355", "#00AAAA", "#FF4455", "#0088DD", "#EECC44", "#2244DD"),
)
_SIDE = 256  # pixels of a picture at least, so that lines and letters are fine
_SHARE = 0.7  # of the class colour over the image
_VOID = 255
_BACKGROUND = "background"
_LEGEND_COLUMNS = 6

Found = list[Objects] | NDArray[np.uint8]


def class_colour(number: int) -> tuple[int, int, int]:
    """Return the colour of a class as RGB from 0 to 255; they repeat after 16."""
    code = PALETTE[number % len(PALETTE)]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def boxes_over_image(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str] | None = None,
) -> Picture:
    """Return an image [3, H, W] with a frame around each box in the colour of its class.

    Args:
        image: uint8 [3, H, W].
        boxes: [n, 4], (x1, y1, x2, y2) in pixels of the image.
        labels: [n], from 1.
        class_names: Written beside the boxes where given; ``class_names[k]`` is label ``k + 1``.
    """
    large, scale = _enlarged(image)
    pen = ImageDraw.Draw(large)
    for box, label in zip(boxes, labels, strict=True):
        x1, y1, x2, y2 = (float(edge) * scale for edge in box)
        colour = class_colour(int(label) - 1)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=3)
        if class_names is not None:
            _write(pen, (x1, y1), class_names[int(label) - 1], colour)
    return (np.asarray(large, dtype=np.float32) / 255).astype(np.float32)


def mask_over_image(image: NDArray[np.uint8], mask: NDArray[np.uint8], class_names: Sequence[str]) -> Picture:
    """Return an image [3, H, W] under the colours of its mask [H, W]; background and void (255) stay as they are."""
    picture = np.asarray(image, dtype=np.float32).transpose(1, 2, 0) / 255
    colours = np.array([class_colour(number) for number in range(256)], dtype=np.float32) / 255
    shown = mask != _VOID
    if class_names and class_names[0] == _BACKGROUND:
        shown &= mask != 0
    blended = (1 - _SHARE) * picture.mean(2, keepdims=True) + _SHARE * colours[mask]
    return np.where(shown[..., None], blended, picture).astype(np.float32)


def dense_predictions(models: Mapping[str, DenseExamples], certain: float = 0.5) -> Figure:
    """Draw the truth and what each model says of the same images: a model a row, an image a column.

    Args:
        models: Name of the model to its examples, all of the same images.
        certain: Score from which a box is drawn.
    """
    if not models:
        raise UserError("no predictions to draw: no model has kept any")
    first = next(iter(models.values()))
    written = first.class_names if len(first.class_names) > len(COLOURS) else None
    rows = {"truth": _pictures(first, first.truth, certain, written)}
    rows |= {name: _pictures(found, found.predicted, certain, written) for name, found in models.items()}
    captions = {"truth": _captions(first.truth, certain)}
    captions |= {name: _captions(found.predicted, certain) for name, found in models.items()}
    figure = picture_rows(rows, captions=captions if any(map(any, captions.values())) else None, cell=1.6)
    if isinstance(first.truth, np.ndarray) or written is None:
        shown = [first.truth, *(found.predicted for found in models.values())]
        _legend(figure, first.class_names, sorted(set().union(*(_classes(part, certain) for part in shown))))
    return figure


def _pictures(examples: DenseExamples, found: Found, certain: float, written: Sequence[str] | None) -> list[Picture]:
    if isinstance(found, np.ndarray):
        pairs = zip(examples.images, found, strict=True)
        return [mask_over_image(image, mask, examples.class_names) for image, mask in pairs]
    sure = [(objects, objects.scores >= certain) for objects in found]
    return [
        boxes_over_image(image, objects.boxes[kept], objects.labels[kept], written)
        for image, (objects, kept) in zip(examples.images, sure, strict=True)
    ]


def _captions(found: Found, certain: float) -> list[str]:
    """Return a text for each image; without one, nothing found looks like something forgotten."""
    if isinstance(found, np.ndarray):
        return [""] * len(found)
    return ["" if (objects.scores >= certain).any() else f"no box ≥ {certain:g}" for objects in found]


def _classes(found: Found, certain: float) -> set[int]:
    """Return the numbers of the classes that are drawn, from 0."""
    if isinstance(found, np.ndarray):
        return {int(value) for value in np.unique(found) if value != _VOID}
    return {int(label) - 1 for objects in found for label in objects.labels[objects.scores >= certain]}


def _legend(figure: Figure, class_names: Sequence[str], classes: Sequence[int]) -> None:
    named = [(number, class_names[number]) for number in classes if class_names[number] != _BACKGROUND]
    if not named:
        return
    handles = [Patch(color=PALETTE[number % len(PALETTE)], label=name) for number, name in named]
    figure.set_figheight(figure.get_figheight() + 0.4 + 0.2 * -(-len(handles) // _LEGEND_COLUMNS))
    columns = min(_LEGEND_COLUMNS, len(handles))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, title="class",
        title_fontsize=8,
    )  # fmt: skip


def _enlarged(image: NDArray[np.uint8]) -> tuple[Image.Image, int]:
    """Return the image, enlarged by a whole number where it is small, and that number."""
    scale = max(1, -(-_SIDE // max(image.shape[1:])))
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST), scale


def _write(pen: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: tuple[int, int, int]) -> None:
    """Write a text on its colour into the upper left corner of a box."""
    left, top, right, bottom = pen.textbbox(corner, text, font_size=26)
    pen.rectangle((left - 3, top - 3, right + 3, bottom + 3), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.text(corner, text, fill="black" if bright else "white", font_size=26)
