"""What a study adds to TensorBoard: a trial's settings beside its results, and the figures."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams, scalar

GROUP = "Result"  # sorts before the lower-case tags, so that the HPARAMS table shows these metrics first


def write_hparams(folder: Path, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Write a trial's settings with its results into the run that its curves are in.

    Only the session is written, no description of the whole experiment: TensorBoard takes one such description for
    all runs it shows, so that each trial's own would hide the settings of the others; without one it collects the
    columns from all runs of all studies.

    Args:
        folder: The run's folder, with or without event files in it.
        settings: Factors of the arm, seed, chosen hyper-parameters; None is shown as ``none``.
        metrics: Results by name; they appear as scalars ``Result/<name>``, with ``/`` in a name made ``_``.
    """
    results = {f"{GROUP}/{name.replace('/', '_')}": float(value) for name, value in metrics.items()}
    _, start, end = hparams({name: _shown(value) for name, value in settings.items()}, results)
    writer = FileWriter(str(folder), filename_suffix=".hparams")
    try:
        writer.add_summary(start)
        for name, value in results.items():
            writer.add_summary(scalar(name, value), global_step=0)
        writer.add_summary(end)
    finally:
        writer.close()


def write_figures(out: Path, figures: Mapping[str, Figure]) -> Path:
    """Write the study's figures as images of the run `figures`, in place of those of an earlier call.

    Args:
        out: Output folder of the study.
        figures: Figures by name; drawn at their own size and dpi.

    Returns:
        Folder of the run.
    """
    folder = out / "figures"
    for earlier in folder.glob("events.out.tfevents.*"):
        with contextlib.suppress(FileNotFoundError):
            earlier.unlink()
    with SummaryWriter(str(folder)) as writer:
        for name, figure in figures.items():
            writer._get_file_writer().add_summary(_image(name, rasterise(figure)))
    return folder


def _image(name: str, pixels: np.ndarray) -> Summary:
    """Return the summary of an image, as PNG or JPEG, whichever is smaller: figures with photographs are large."""
    encoded = []
    for options in ({"format": "PNG", "optimize": True}, {"format": "JPEG", "quality": 88}):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, **options)  # type: ignore[arg-type]
        encoded.append(buffer.getvalue())
    height, width, colours = pixels.shape
    image = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=min(encoded, key=len))
    return Summary(value=[Summary.Value(tag=name, image=image)])


def rasterise(figure: Figure) -> np.ndarray:
    """Return the figure as uint8 RGB pixels [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@contextlib.contextmanager
def errors_told_once() -> Iterator[None]:
    """Leave an event file that cannot be written to whoever writes to it next, who is told.

    The thread that writes for TensorBoard hands such an error on and also raises it where nobody can catch it, so that
    Python prints a traceback before the line in which the study says that the disk is full.
    """
    before = threading.excepthook

    def told_once(raised: threading.ExceptHookArgs) -> None:
        writers = type(raised.thread).__module__.startswith("tensorboard.")
        if not (writers and isinstance(raised.exc_value, OSError)):
            before(raised)

    threading.excepthook = told_once
    try:
        yield
    finally:
        threading.excepthook = before


def _shown(value: Any) -> str | float | bool:
    if value is None:
        return "none"
    return value if isinstance(value, str | bool | int | float) else str(value)
