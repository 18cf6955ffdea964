"""What a trained detector or segmentation model says of a few validation images, kept for the report's pictures."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_lightning.tasks import TaskModule

NAME = "examples.npz"


@dataclass(frozen=True)
class Objects:
    """Boxes in one image: float [n, 4] (x1, y1, x2, y2 in pixels), labels int [n] from 1 and scores [n]."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class DenseExamples:
    """A few images, what is in them, and what a model says.

    Attributes:
        images: uint8 [N, 3, H, W].
        truth: An ``Objects`` an image, or masks uint8 [N, H, W].
        predicted: The same of the model.
        class_names: As in the data module.
    """

    images: NDArray[np.uint8]
    truth: list[Objects] | NDArray[np.uint8]
    predicted: list[Objects] | NDArray[np.uint8]
    class_names: tuple[str, ...]


def keep_dense_examples(folder: Path, module: TaskModule, images: Any, count: int = 4) -> None:
    """Write the first validation images with truth and prediction to ``folder``; the module is left as it was.

    Args:
        folder: A trial's folder.
        module: A trained ``DetectionModule`` or ``SegmentationModule``.
        images: Its ``DenseDataModule``.
        count: Images to keep at most.
    """
    dense_set = images.val_set
    batch = dense_set.batch(torch.arange(min(count, len(dense_set))))
    predicted = _predict(module, batch["image"])
    arrays = {"images": batch["image"].numpy(), "class_names": np.array(dense_set.class_names)}
    if "mask" in batch:
        arrays |= {"true_masks": batch["mask"].numpy(), "masks": predicted.cpu().numpy().astype(np.uint8)}
    else:
        truth = [
            {"boxes": boxes, "labels": labels, "scores": torch.ones(len(labels))}
            for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)
        ]
        arrays |= {"true_objects": _table(truth), "objects": _table(predicted)}
    temporary = folder / f".{NAME}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, folder / NAME)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_dense_examples(folder: Path) -> DenseExamples | None:
    """Return what ``keep_dense_examples`` wrote to a folder; None where it is not there (any more)."""
    try:
        with np.load(folder / NAME) as found:
            arrays = dict(found)
    except (OSError, ValueError):
        return None
    images, names = arrays["images"], tuple(map(str, arrays["class_names"]))
    if "masks" in arrays:
        return DenseExamples(images, arrays["true_masks"], arrays["masks"], names)
    truth, predicted = (_objects(arrays[key], len(images)) for key in ("true_objects", "objects"))
    return DenseExamples(images, truth, predicted, names)


def _predict(module: TaskModule, images: torch.Tensor) -> Any:
    training = module.training
    device = next(module.parameters()).device
    module.eval()
    try:
        with torch.inference_mode():
            return module.predict_step({"image": images.to(device).float() / 255}, 0)
    finally:
        module.train(training)


def _table(found: list[dict[str, torch.Tensor]]) -> NDArray[np.float32]:
    """Return float32 [n, 7] for all images: number of the image, box, label, score."""
    rows = [
        torch.cat([torch.full((len(f["labels"]), 1), float(k)), f["boxes"].cpu(), _columns(f)], 1)
        for k, f in enumerate(found)
    ]
    return torch.cat(rows).float().numpy()


def _columns(found: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([found["labels"].cpu().float(), found["scores"].cpu().float()], 1)


def _objects(table: NDArray[np.float32], count: int) -> list[Objects]:
    by_image = [table[table[:, 0] == k] for k in range(count)]
    return [Objects(rows[:, 1:5], rows[:, 5].astype(np.int64), rows[:, 6]) for rows in by_image]
