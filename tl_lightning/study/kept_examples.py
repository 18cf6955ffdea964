"""Keep what a trained detector or segmentation model says of a few validation images beside its trial."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_lightning.study.dense_examples import NAME
from tl_lightning.tasks import TaskModule


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
            np.savez_compressed(file, **arrays)
        os.replace(temporary, folder / NAME)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _predict(module: TaskModule, images: torch.Tensor) -> Any:
    modes = [(part, part.training) for part in module.modules()]
    device = next(module.parameters()).device
    module.eval()
    try:
        with torch.inference_mode():
            return module.predict_step({"image": images.to(device).float() / 255}, 0)
    finally:
        for part, training in modes:
            part.training = training


def _table(found: list[dict[str, torch.Tensor]]) -> NDArray[np.float32]:
    """Return float32 [n, 7] for all images: number of the image, box, label, score."""
    rows = [
        torch.cat([torch.full((len(f["labels"]), 1), float(k)), f["boxes"].cpu(), _columns(f)], 1)
        for k, f in enumerate(found)
    ]
    return torch.cat(rows).float().numpy()


def _columns(found: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([found["labels"].cpu().float(), found["scores"].cpu().float()], 1)
