"""Train a detector or a segmentation model of one arm at one seed: ``training`` for tasks with boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from tl_lightning.backbones import check_image_size
from tl_lightning.callbacks import ProgressiveUnfreezing
from tl_lightning.data.annotations import OnBad
from tl_lightning.data.dense import DenseDataModule
from tl_lightning.data.dense_datasets import Task
from tl_lightning.data.partition import PARTS
from tl_lightning.errors import UserError
from tl_lightning.study.design import Trial
from tl_lightning.study.devices import resolve_devices
from tl_lightning.study.fitting import evaluate_selected, fit_grid
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import Freezing
from tl_lightning.tasks import DetectionModule, SegmentationModule, TaskModule
from tl_lightning.tasks.dense import DenseModule

METRICS: dict[Task, str] = {"detection": "val/map", "segmentation": "val/miou"}
MODULES: dict[Task, type[DenseModule]] = {"detection": DetectionModule, "segmentation": SegmentationModule}
Inspect = Callable[[TaskModule, Any], Mapping[str, Any]]


@dataclass(frozen=True)
class DenseTask:
    """What is to be found in which images, and by what kind of model.

    Attributes:
        task: ``"detection"`` or ``"segmentation"``.
        data: A name in ``DENSE_SETS``.
        data_dir: Folder of the images.
        class_names: Classes of the user's own files; read from the files by default.
        void_ids: Pixel values of masks that are no class, besides 255.
        on_bad_annotation: What to do with boxes that leave the image or have no area.
        module_options: Further arguments of ``DetectionModule`` or ``SegmentationModule``, such as the detector.
    """

    task: Task
    data: str
    data_dir: str | None = None
    class_names: tuple[str, ...] | None = None
    void_ids: tuple[int, ...] = ()
    on_bad_annotation: OnBad = "error"
    module_options: Mapping[str, Any] = field(default_factory=dict)


def dense_data_module(
    settings: Settings, dense: DenseTask, seed: int, train_images: int | None = None
) -> DenseDataModule:
    """Return the data module of a dense task at one seed, set up.

    All arms of a seed and size get the same one; all sizes and seeds share the decoded images.
    """
    arguments: dict[str, Any] = {
        "name": dense.data,
        "data_dir": dense.data_dir,
        "task": dense.task,
        "image_size": settings.image_size,
        "batch_size": settings.micro_batch_size(),
        "eval_batch_size": 64 if torch.cuda.is_available() else 16,
        "train_images": train_images,
        "val_images": settings.max_val_samples,
        "test_images": settings.max_test_samples,
        "seed": seed,
        "class_names": dense.class_names,
        "void_ids": dense.void_ids,
        "on_bad_annotation": dense.on_bad_annotation,
    }
    return _set_up(tuple(arguments.items()))


@lru_cache(maxsize=8)
def _set_up(arguments: tuple[tuple[str, Any], ...]) -> DenseDataModule:
    datamodule = DenseDataModule(**dict(arguments))
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def build_dense_module(
    settings: Settings, dense: DenseTask, seed: int, num_classes: int, weights: str, lr: float
) -> DenseModule:
    """Return the module; the seed alone decides the new layers' (and a scratch backbone's) initial weights."""
    torch.manual_seed(seed)
    return MODULES[dense.task](
        settings.backbone,
        num_classes,
        weights=weights,
        lr=lr,
        optimizer=settings.optimizer,  # type: ignore[arg-type]
        weight_decay=settings.weight_decay,
        **dense.module_options,
    )


def train_and_test_dense(
    trial: Trial,
    settings: Settings,
    dense: DenseTask,
    *,
    train_images: int | None = None,
    weights: str | None = None,
    epochs: int | None = None,
    freezing: Freezing = 0,
    callbacks: Callable[[], Sequence[Callback]] | None = None,
    learning_rates: Sequence[float] | None = None,
    inspect: Inspect | None = None,
) -> dict[str, Any]:
    """Fit the arm at every learning rate, select by validation mAP or mIoU, test the selected model once.

    Args:
        trial: Arm, seed and folder.
        settings: What all arms share.
        dense: The task and its images.
        train_images: Number of training images; all by default.
        weights: Other weights than those of the settings.
        epochs: Another number of epochs than that of the settings.
        freezing: What is frozen of the backbone, see ``ProgressiveUnfreezing``; the rest always trains.
        callbacks: Makes further callbacks, such as ``DenseAugmentation``.
        learning_rates: Another grid than that of the settings, as long.
        inspect: Called with the selected module and the data module before the test; what it returns joins the record.

    Returns:
        The values of the trial's record.
    """
    images = dense_data_module(settings, dense, trial.seed, train_images)
    weights = weights or settings.weights

    def own_callbacks() -> list[Callback]:
        return [ProgressiveUnfreezing(freezing), *(callbacks() if callbacks is not None else ())]

    fits = fit_grid(
        trial,
        settings,
        images,
        lambda lr: build_dense_module(settings, dense, trial.seed, images.num_classes, weights, lr),
        callbacks=own_callbacks,
        metric=METRICS[dense.task],
        epochs=epochs,
        learning_rates=learning_rates,
    )
    return {
        "data": dense.data,
        "backbone": settings.backbone,
        "weights": weights,
        **evaluate_selected(trial, fits, inspect=inspect),
    }


def check_dense_training(settings: Settings, dense: DenseTask, train_images: int | None = None) -> None:
    """Read every image that any trial will use, and build the module once.

    Args:
        settings: What all arms share.
        dense: The task and its images.
        train_images: The largest number of training images; smaller subsets lie within it.

    Raises:
        UserError: For a backbone, head, weights, image size, annotation or file that a trial could not run with.
    """
    check_image_size(settings.backbone, settings.image_size)
    resolve_devices(settings.gpus, settings.precision)
    for seed in settings.seed_list():
        images = dense_data_module(settings, dense, seed, train_images)
        for part in PARTS:
            if not int(images.label_counts(part).sum()):
                raise UserError(
                    f"{dense.data}: nothing is annotated in the {part} part ({len(getattr(images, f'{part}_set'))} "
                    f"images, seed {seed}); {dense.task} cannot be learnt or judged there"
                )
    build_dense_module(settings, dense, 0, images.num_classes, settings.weights, 1e-3)
