"""Place the labels of a scatter plot so that they hide neither each other nor the points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from numpy.typing import NDArray

_DISTANCES = (9.0, 16.0, 26.0, 38.0, 54.0, 74.0, 98.0)  # points from the marker to the label's near edge
_DIRECTIONS = tuple((float(np.cos(angle)), float(np.sin(angle))) for angle in np.linspace(0, 2 * np.pi, 17)[:-1])
_LEADER_FROM = 20.0  # labels further away than this get a line to their point


def place_labels(
    axes: Axes,
    points: NDArray[np.float64],
    texts: Sequence[str],
    obstacles: Sequence[NDArray[np.float64]] = (),
    fontsize: float = 9.0,
    colours: Sequence[str] | None = None,
) -> list[Annotation]:
    """Write a label beside each point, the nearest free place first.

    The limits and scales of the axes must be final, and the figure's layout is frozen as it is.

    Args:
        axes: The axes that hold the points.
        points: Data coordinates, shape [n, 2].
        texts: A label each.
        obstacles: Level or upright lines to keep clear of, data coordinates ``[x0, y0, x1, y1]`` (error bars).
        fontsize: In points.
        colours: A text colour each; black by default.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # a later layout would move the axes under the labels
    scale = figure.dpi / 72  # pixels a point
    pixels = np.atleast_2d(axes.transData.transform(points))
    frame = np.array(axes.get_window_extent().extents)
    lines = [_thick(axes.transData.transform(_drawable(line, axes)), 2 * scale, frame) for line in obstacles]
    taken = np.array([_box(centre, 8 * scale, 8 * scale) for centre in pixels])
    annotations: list[Annotation | None] = [None] * len(texts)
    for index in _most_crowded_first(pixels):
        annotation = axes.annotate(
            texts[index],
            tuple(points[index]),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=fontsize,
            ha="center",
            va="center",
            color=colours[index] if colours else "black",
            annotation_clip=False,
            zorder=5,
        )
        extent = annotation.get_window_extent(canvas.get_renderer())
        box, offset, distance = _best_place(index, pixels, (extent.width, extent.height), taken, lines, frame, scale)
        annotation.set_position((offset[0] / scale, offset[1] / scale))
        if distance > _LEADER_FROM:
            _leader(axes, points[index], box, pixels[index])
        taken = np.concatenate([taken, box[None]])
        annotations[index] = annotation
    return [annotation for annotation in annotations if annotation is not None]


def overlap_area(box: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return the area of a box [x0, y0, x1, y1] that the other boxes [n, 4] cover, summed."""
    if len(others) == 0:
        return 0.0
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.prod(np.maximum(sides, 0), axis=1).sum())


def _best_place(
    index: int,
    pixels: NDArray[np.float64],
    size: tuple[float, float],
    taken: NDArray[np.float64],
    lines: Sequence[NDArray[np.float64]],
    frame: NDArray[np.float64],
    scale: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return box, offset of the centre in pixels and distance in points of the place that costs least."""
    point, others, bars = pixels[index], np.delete(taken, index, axis=0), np.reshape(lines, (-1, 4))
    width, height = size
    best = (np.inf, taken[index], np.zeros(2), 0.0)
    for distance in _DISTANCES:
        for x, y in _DIRECTIONS:
            offset = np.array([x, y]) * distance * scale + np.array([np.sign(round(x, 6)) * width, y * height]) / 2
            box = _box(point + offset, width + 4 * scale, height + 2 * scale)
            outside = width * height - overlap_area(_box(point + offset, width, height), frame[None])
            cost = overlap_area(box, bars) + 3 * overlap_area(box, taken) + 5 * max(0.0, outside)
            cost += 0.3 * distance * scale
            if distance > _LEADER_FROM:
                cost += 300 * scale * _crossings(point, np.clip(point, box[:2], box[2:]), others)
            if cost < best[0]:
                best = (cost, box, offset, distance)
    return best[1:]


def _crossings(start: NDArray[np.float64], end: NDArray[np.float64], boxes: NDArray[np.float64]) -> int:
    """Return how many of the boxes [n, 4] the line from start to end touches, at 24 places along it."""
    places = start + (end - start) * np.linspace(0, 1, 24)[:, None]
    inside = (places[:, None] >= boxes[None, :, :2]) & (places[:, None] <= boxes[None, :, 2:])
    return int(inside.all(axis=-1).any(axis=0).sum())


def _leader(axes: Axes, point: NDArray[np.float64], box: NDArray[np.float64], pixel: NDArray[np.float64]) -> None:
    edge = np.clip(pixel, box[:2], box[2:])
    end = axes.transData.inverted().transform(edge)
    line = np.stack([point, end]).T
    # dotted, as a thin solid line looks like an interval
    axes.plot(*line, color="#555555", linewidth=1.0, linestyle=":", zorder=2.5, scalex=False, scaley=False)


def _most_crowded_first(pixels: NDArray[np.float64]) -> list[int]:
    distances = np.linalg.norm(pixels[:, None] - pixels[None], axis=-1)
    return np.argsort(np.sort(distances, axis=1)[:, : min(4, len(pixels))].sum(axis=1), kind="stable").tolist()


def _box(centre: NDArray[np.float64], width: float, height: float) -> NDArray[np.float64]:
    half = np.array([width, height]) / 2
    return np.concatenate([centre - half, centre + half])


def _drawable(line: NDArray[np.float64], axes: Axes) -> NDArray[np.float64]:
    """Return the line's ends [2, 2], moved to where a logarithmic axis can show them."""
    ends = np.reshape(line, (2, 2)).astype(float)
    for side, scale, limits in ((0, axes.get_xscale(), axes.get_xlim()), (1, axes.get_yscale(), axes.get_ylim())):
        if scale == "log":
            ends[:, side] = np.maximum(ends[:, side], limits[0])
    return ends


def _thick(ends: NDArray[np.float64], width: float, frame: NDArray[np.float64]) -> NDArray[np.float64]:
    box = np.concatenate([ends.min(axis=0) - width, ends.max(axis=0) + width])
    return np.concatenate([np.maximum(box[:2], frame[:2]), np.minimum(box[2:], frame[2:])])
