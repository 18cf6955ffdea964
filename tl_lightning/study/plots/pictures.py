"""Rows of pictures: images, and maps over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from tl_lightning.errors import UserError
from tl_lightning.study.plots.style import new_figure, wrap_at_commas

Picture = npt.NDArray[np.float32]
_LEFT = 1.0  # inches for the names of the rows
_DPI = 70  # on screens and in TensorBoard: photographs at 100 dpi would make event files of megabytes


def picture_rows(
    rows: Mapping[str, Sequence[Picture]],
    *,
    columns: Sequence[str] = (),
    captions: Mapping[str, Sequence[str]] | None = None,
    cell: float = 1.3,
    heading: int = 0,
) -> Figure:
    """Draw pictures in rows, each row with its name on the left.

    Args:
        rows: Name of a row to its pictures, RGB [H, W, 3] in [0, 1]; rows may differ in length.
        columns: Text above the columns.
        captions: Name of a row to the texts under its pictures.
        cell: Side of a picture in inches.
        heading: The row that bears the text of the columns: not the first where that holds for the rows below it.
    """
    if not rows or not all(len(pictures) for pictures in rows.values()):
        raise UserError("no pictures to draw")
    width = max(len(pictures) for pictures in rows.values())
    text = 0.2 if captions is None else 0.22 + 0.16 * _most_lines(captions)
    figure = new_figure(_LEFT + (cell + 0.12) * width, 0.35 + (cell + text) * len(rows))
    figure.set_dpi(_DPI)
    axes = figure.subplots(len(rows), width, squeeze=False)
    for row, (name, pictures) in enumerate(rows.items()):
        for column, place in enumerate(axes[row]):
            place.set_xticks([])
            place.set_yticks([])
            if column >= len(pictures):
                place.set_axis_off()
                continue
            place.imshow(np.clip(pictures[column], 0, 1))
            place.spines[:].set_visible(False)
            if captions is not None:
                place.set_xlabel(captions[name][column], fontsize=8, labelpad=2)
        axes[row, 0].set_ylabel(wrap_at_commas(name, 16), fontsize=8)
    for place, title in zip(axes[heading], columns, strict=False):
        place.set_title(title, fontsize=9)
    return figure


def as_picture(image: npt.NDArray[np.float32]) -> Picture:
    """Return an image [3, H, W] in [0, 1] as a picture."""
    return np.asarray(image, dtype=np.float32).transpose(1, 2, 0).clip(0, 1)


def map_over_image(image: npt.NDArray[np.float32], heat: npt.NDArray[np.float32]) -> Picture:
    """Return a map over its image in grey: the map's own maximum is bright, where it is low the image shows through.

    Args:
        image: [3, H, W] in [0, 1].
        heat: [H, W], negative values count as 0.
    """
    grey = as_picture(image).mean(2, keepdims=True).repeat(3, axis=2)
    share = np.clip(heat, 0, None) / max(float(np.max(heat)), 1e-12)
    colour = matplotlib.colormaps["inferno"](share)[..., :3]
    opacity = (0.15 + 0.55 * share)[..., None]
    return (grey * (1 - opacity) + colour * opacity).astype(np.float32)


def map_alone(heat: npt.NDArray[np.float32], quantile: float = 0.995) -> Picture:
    """Return a fine map [H, W] as a picture of its own, from 0 to a high quantile of its values."""
    top = max(float(np.quantile(heat, quantile)), 1e-12)
    return np.asarray(matplotlib.colormaps["inferno"](np.clip(heat / top, 0, 1))[..., :3], dtype=np.float32)


def _most_lines(captions: Mapping[str, Sequence[str]]) -> int:
    return max((text.count("\n") for texts in captions.values() for text in texts), default=0)
