"""The figure of Grad-CAM maps: the same images, one row for each time they were explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_lightning.analysis.attribution import GradCAMMaps

CELL_INCHES = 1.25
RIGHT, WRONG, NEUTRAL = "#00693e", "#b3261e", "#222222"


def gradcam_panel(
    images: npt.NDArray[np.float32],
    explained: Mapping[str, GradCAMMaps],
    *,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    dpi: int = 80,
) -> Figure:
    """Draw images above their Grad-CAM maps.

    A map is scaled to its own maximum: colours compare places within an image, not images. Under each map stand the
    predicted class and its probability, with a tick or a cross where the true class is known, and the explained class
    where it is another one. A map that is zero everywhere is said to be empty: no channel speaks for the class.

    Args:
        images: [N, 3, H, W] in [0, 1].
        explained: Title of a row (a time, a model) to the maps of the same images.
        labels: True classes [N].
        class_names: Names of the classes; numbers by default.
        dpi: Pixels per inch; a cell is 1.25 inches wide.
    """
    columns, rows = len(images), len(explained) + 1
    aspect = images.shape[2] / images.shape[3]
    figure = Figure(
        figsize=(CELL_INCHES * columns + 0.4, (CELL_INCHES * aspect + 0.45) * rows), dpi=dpi, layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for column, image in enumerate(images):
        true = labels[column] if labels is not None else None
        _show(axes[0, column], image)
        _caption(axes[0, column], f"true: {_name(true, class_names)}" if true is not None else "", NEUTRAL)
        for row, maps in enumerate(explained.values(), start=1):
            _show(axes[row, column], image, maps.maps[column])
            _caption(axes[row, column], *_verdict(maps, column, true, class_names))
    for row, title in enumerate(["image", *explained]):
        axes[row, 0].set_ylabel(title, fontsize=8)
    return figure


def _show(axes: Axes, image: npt.NDArray[np.float32], heat: npt.NDArray[np.float32] | None = None) -> None:
    picture = image.transpose(1, 2, 0).clip(0, 1)
    if heat is not None:
        picture = picture.mean(2, keepdims=True).repeat(3, axis=2)  # grey, so that all colour is the map's
    axes.imshow(picture)
    if heat is not None:
        scaled = heat / max(float(heat.max()), 1e-12)
        axes.imshow(scaled, cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.55 * scaled)
    axes.set_xticks([])
    axes.set_yticks([])


def _verdict(maps: GradCAMMaps, index: int, true: int | None, class_names: Sequence[str] | None) -> tuple[str, str]:
    """Return the caption of a map and its colour."""
    predicted = int(maps.probabilities[index].argmax())
    text = f"{_name(predicted, class_names)} {maps.probabilities[index, predicted]:.0%}"
    colour = NEUTRAL
    if true is not None:
        text = f"{'✓' if predicted == true else '✗'} {text}"
        colour = RIGHT if predicted == true else WRONG
    notes = [f"map: {_name(int(maps.classes[index]), class_names)}"] if maps.classes[index] != predicted else []
    notes += ["empty map"] if maps.maps[index].max() == 0 else []
    return "\n".join([text, *notes]), colour


def _caption(axes: Axes, text: str, colour: str) -> None:
    axes.set_xlabel(text, fontsize=8, color=colour, labelpad=2)


def _name(index: int, class_names: Sequence[str] | None) -> str:
    name = class_names[index] if class_names is not None else f"class {index}"
    return name if len(name) <= 14 else f"{name[:13]}…"
