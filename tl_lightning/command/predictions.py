"""Write what a model predicts: a table, and for segmentation a mask an image."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from tl_lightning.data.unlabelled import PredictedImages
from tl_lightning.errors import UserError
from tl_lightning.paths import user_path
from tl_lightning.study.atomic import write_text
from tl_lightning.tasks import TaskModule
from tl_lightning.tasks.detection import DetectionModule
from tl_lightning.tasks.segmentation import SegmentationModule

Row = list[str]


class PredictionWriter(Callback):
    """Collect the predictions of a run and write them when it ends, on one process of all.

    Classification: ``image, class, probability`` of the likeliest class. Detection: a row an object with ``image,
    class, score, x1, y1, x2, y2`` in pixels of the image's file. Segmentation: ``image, mask``, and beside the table a
    folder of its name with a PNG an image, the number of the class in every pixel, in the size of the image's file.

    Args:
        output: The table, a name that ends in ``.csv``; replaced at once, at the end.
        class_names: The classes in the order of the model's outputs.
        images: What to call the images.

    Raises:
        UserError: The table cannot be written there, or the masks would lie among the images.
    """

    def __init__(self, output: str | Path, class_names: Sequence[str], images: PredictedImages) -> None:
        self.output = checked_output(output)
        self.class_names = list(class_names)
        self.images = images
        self.masks = _mask_names(images)
        self.columns: Row = []
        self.rows: dict[int, list[Row]] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuse to write masks among the images, where they would replace images or be taken for some later on."""
        if not isinstance(pl_module, SegmentationModule) or not self.images.are_files:
            return
        masks, images = self.output.with_suffix("").resolve(), _common_folder(self.images).resolve()
        if masks == images or images in masks.parents:
            raise UserError(f"--output {self.output} would put the masks among the images, into {masks}")

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the rows of a batch; write its masks."""
        index = batch["index"].tolist()
        size = tuple(batch["image"].shape[-2:])
        for position, found in zip(index, outputs, strict=True):
            self.rows[position] = self._rows(pl_module, position, found, size)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the table."""
        rows = self.rows
        if trainer.world_size > 1:
            shares: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, rows)
            rows = {position: found for share in shares for position, found in share.items()}
        if not trainer.is_global_zero:
            return
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_columns(pl_module))
        table.writerows(row for position in sorted(rows) for row in rows[position])
        write_text(self.output, text.getvalue())
        print(f"predictions of {len(rows)} images in {self.output}")

    def _rows(self, module: TaskModule, position: int, found: Any, size: tuple[int, int]) -> list[Row]:
        name = _printable(self.images.names[position])
        shape = self.images.shape(position) or size
        if isinstance(module, DetectionModule):
            return [[name, *rest] for rest in self._objects(found, shape[0] / size[0], shape[1] / size[1])]
        if isinstance(module, SegmentationModule):
            return [[name, _printable(str(self._write_mask(position, found, shape)))]]
        probability, label = found.max(0)
        return [[name, _printable(self.class_names[int(label)]), f"{float(probability):.6f}"]]

    def _objects(self, found: dict[str, Tensor], up: float, across: float) -> list[Row]:
        boxes = found["boxes"].cpu() * torch.tensor([across, up, across, up])
        labels, scores = found["labels"].tolist(), found["scores"].tolist()
        return [
            [_printable(self.class_names[label - 1]), f"{score:.6f}", *(f"{side:.2f}" for side in box)]
            for label, score, box in zip(labels, scores, boxes.tolist(), strict=True)
        ]

    def _write_mask(self, position: int, found: Tensor, shape: tuple[int, int]) -> Path:
        path = self.output.with_suffix("") / self.masks[position]
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = Image.fromarray(found.to("cpu", torch.uint8).numpy()).resize(shape[::-1], Image.Resampling.NEAREST)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        mask.save(temporary, format="PNG")
        os.replace(temporary, path)
        return path


def checked_output(output: str | Path) -> Path:
    """Return the path of the table if it can be written there.

    Raises:
        UserError: It does not end in .csv, is a folder, or lies in no folder.
    """
    path = user_path(output)
    if path.suffix != ".csv":
        raise UserError(f"--output must end in .csv, but is {path}")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}")
    return path


def _columns(module: TaskModule) -> Row:
    if isinstance(module, DetectionModule):
        return ["image", "class", "score", "x1", "y1", "x2", "y2"]
    if isinstance(module, SegmentationModule):
        return ["image", "mask"]
    return ["image", "class", "probability"]


def _mask_names(images: PredictedImages) -> list[str]:
    """Return a file name for every image's mask: below the images' common folder, by stem where that is unique."""
    if not images.are_files:
        return [f"{name}.png" for name in images.names]
    root = _common_folder(images)
    relative = [os.path.relpath(name, root) for name in images.names]
    stems = Counter(os.path.splitext(name)[0] for name in relative)
    return [f"{stem}.png" if stems[stem := os.path.splitext(name)[0]] == 1 else f"{name}.png" for name in relative]


def _common_folder(images: PredictedImages) -> Path:
    return Path(os.path.commonpath([os.path.dirname(name) for name in images.names]))


def _printable(name: str) -> str:
    """Return a name that can be written as UTF-8; the bytes of one that is none stand as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
