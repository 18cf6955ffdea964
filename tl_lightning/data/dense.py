"""The data module for detection and segmentation: a set by name, split and subset by seed, scaled on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from tl_lightning.data import splits
from tl_lightning.data.annotations import OnBad
from tl_lightning.data.dense_datasets import DenseCard, DenseRequest, RawDenseSet, Task, dense_card
from tl_lightning.data.dense_set import DenseLoader, DenseSet, read_examples
from tl_lightning.data.dense_sources import ExampleSource, Size
from tl_lightning.data.partition import PARTS, Part
from tl_lightning.data.summary import summary
from tl_lightning.data.unlabelled import PredictedImages, UnlabelledSet, unlabelled_files
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.paths import user_path

_SIDES = range(32, 4097)


class DenseDataModule(LightningDataModule):
    """Images with boxes or masks: decoded once to uint8 at the size wanted, served in batches, scaled on the device.

    The model gets a dict with ``image`` float32 [B, 3, H, W] in [0, 1], ``index`` int64 [B] and

    * for detection ``boxes``, a list of float32 [n, 4] (x1, y1, x2, y2 in pixels), ``labels``, a list of int64 [n]
      from 1, and ``crowd``, a list of bool [n] (objects that count neither as found nor as missed);
    * for segmentation ``mask`` int64 [B, H, W], 255 where no class is known.

    Images are resized to the given size whatever their own aspect ratio, boxes with them; masks to the nearest pixel.
    A published validation or test part is used as it is. Otherwise the test part is split off with seed 0, the same in
    every trial, and then the validation part with ``seed``. A larger training subset contains the smaller ones of the
    same seed. The order of batches is a pure function of seed and epoch.

    Args:
        name: A name in ``DENSE_SETS``; ``scenes`` needs no files and is composed when it is read.
        data_dir: Folder of the images, or of what torchvision downloads.
        task: ``"detection"`` or ``"segmentation"``; by default what the set is annotated for.
        image_size: Side of the square that images are resized to, or (height, width), in pixels.
        batch_size: Training images a batch (on each rank).
        eval_batch_size: Validation and test images a batch.
        train_images: Number of training images; None for all.
        val_images: At most so many validation images.
        test_images: At most so many test images.
        val_fraction: Part of the training images to validate on, where the set has no validation part of its own.
        test_fraction: Part of all images to test on, where the set has no test part of its own.
        seed: See above.
        class_names: Classes of the user's own files, in the order of their labels; read from the files by default.
        void_ids: Pixel values of masks that are no class, besides 255.
        on_bad_annotation: ``error`` at a box that leaves the image or has no area; ``skip`` to cut boxes to the image
            and leave empty ones out.
        download: Whether to download what is missing.
        predict_dir: Folder of images without labels to predict; the test part by default.

    Raises:
        UserError: From the constructor for a value that cannot be; from ``setup`` for data that is missing or unusable.
    """

    train_set: DenseSet
    val_set: DenseSet
    test_set: DenseSet

    def __init__(
        self,
        name: str = "scenes",
        data_dir: str | None = None,
        *,
        task: Task | None = None,
        image_size: int | tuple[int, int] = 128,
        batch_size: int = 8,
        eval_batch_size: int = 16,
        train_images: int | None = None,
        val_images: int | None = None,
        test_images: int | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.25,
        seed: int = 0,
        class_names: Sequence[str] | None = None,
        void_ids: Sequence[int] = (),
        on_bad_annotation: OnBad = "error",
        download: bool = True,
        predict_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.card: DenseCard = dense_card(name)
        self.name = name
        self.task: Task = task or self.card.tasks[0]
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.size: Size = (height, width)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.train_images = train_images
        self.val_images = val_images
        self.test_images = test_images
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.predict_dir = predict_dir
        self.class_names: list[str] = []
        self.request = DenseRequest(
            task=self.task,
            root=user_path(data_dir) if data_dir else None,
            class_names=tuple(class_names) if class_names else None,
            void=tuple(void_ids),
            on_bad=on_bad_annotation,
            download=download,
        )
        self._check()

    def _check(self) -> None:
        if self.task not in self.card.tasks:
            raise UserError(f"{self.name} is annotated for {', '.join(self.card.tasks)}, not for {self.task}")
        if any(side not in _SIDES for side in self.size):
            raise UserError(f"image_size must be {_SIDES[0]} to {_SIDES[-1]} pixels, but is {self.size}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, but is {self.seed}")
        for name in ("batch_size", "eval_batch_size", "train_images", "val_images", "test_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, but is {value}")
        for name in ("val_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must lie between 0 and 1, but is {getattr(self, name)}")
        if not all(0 <= value <= 255 for value in self.request.void):
            raise UserError(f"void_ids are pixel values, 0 to 255, not {self.request.void}")
        if self.request.on_bad not in ("error", "skip"):
            raise unknown_name("value of on_bad_annotation", self.request.on_bad, ("error", "skip"))

    @property
    def num_classes(self) -> int:
        """Number of classes, known after ``setup``: without the background for detection, with it for segmentation."""
        return len(self.class_names)

    def __str__(self) -> str:
        """Return what it holds."""
        return summary(self, self.card.name, self.size, self.batch_size, self.class_names)

    __repr__ = __str__

    def prepare_data(self) -> None:
        """Download what is missing (Lightning calls this on one process of a machine)."""
        if self.request.download and self.card.downloaded and self.predict_dir is None:
            self.card.load(self.request)

    def setup(self, stage: str | None = None) -> None:
        """Read, split and decode; does its work once. To predict a folder needs neither classes nor labels."""
        if stage == "predict" and self.predict_dir is not None:
            self._unlabelled = UnlabelledSet(unlabelled_files(self.predict_dir), self.size)
            return
        if self.class_names:
            return
        raw = self.card.load(self.request)
        for part, (source, positions) in self._divide(raw).items():
            examples = read_examples(source, positions, self.size)
            dense_set = DenseSet(examples, self.task, raw.class_names, torch.from_numpy(positions))
            setattr(self, f"{part}_set", dense_set)
            if part == "test":
                self._test_paths = [source.path(int(position)) for position in positions]
        self.class_names = list(raw.class_names)

    def _divide(self, raw: RawDenseSet) -> dict[Part, tuple[ExampleSource, splits.Ints]]:
        source = raw.parts["train"]
        pool = np.arange(len(source))
        test, pool = self._held_out(raw, "test", pool, self.test_fraction, seed=0)
        val, pool = self._held_out(raw, "val", pool, self.val_fraction, self.seed)
        if self.train_images is not None and self.train_images > len(pool):
            raise UserError(f"train_images is {self.train_images}, but {self.name} has {len(pool)} training images")
        return {
            "train": (source, _first(pool, self.train_images, self.seed)),
            "val": (val[0], _first(val[1], self.val_images, seed=0)),
            "test": (test[0], _first(test[1], self.test_images, seed=0)),
        }

    def _held_out(
        self, raw: RawDenseSet, part: Part, pool: splits.Ints, fraction: float, seed: int
    ) -> tuple[tuple[ExampleSource, splits.Ints], splits.Ints]:
        if part in raw.parts:
            return (raw.parts[part], np.arange(len(raw.parts[part]))), pool
        if len(pool) < 3:
            raise UserError(f"{self.name} has too few images for a {part} split")
        kept, held = splits.stratified_holdout(np.zeros(len(pool), np.int64), fraction, seed)
        return (raw.parts["train"], pool[held]), pool[kept]

    def train_dataloader(self) -> DenseLoader:
        """Return the shuffling loader of the training set (in the set's order when the trainer overfits batches)."""
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        return self._loader(self.train_set, self.batch_size, shuffle=not overfit)

    def val_dataloader(self) -> DenseLoader:
        """Return the loader of the validation set."""
        return self._loader(self.val_set, self.eval_batch_size)

    def test_dataloader(self) -> DenseLoader:
        """Return the loader of the test set."""
        return self._loader(self.test_set, self.eval_batch_size)

    def predict_dataloader(self) -> DenseLoader:
        """Return the loader of the images without labels, or of the test set."""
        return self._loader(self.test_set if self.predict_dir is None else self._unlabelled, self.eval_batch_size)

    def predicted_images(self) -> PredictedImages:
        """Return what to call the images of ``predict_dataloader``, by their ``index``."""
        paths = self._test_paths if self.predict_dir is None else self._unlabelled.paths
        if None in paths:
            return PredictedImages(tuple(str(int(position)) for position in self.test_set.indices), False)
        return PredictedImages(tuple(str(path) for path in paths), True)

    def _loader(self, dense_set: DenseSet | UnlabelledSet, batch_size: int, shuffle: bool = False) -> DenseLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DenseLoader(dense_set, batch_size, shuffle=shuffle, seed=self.seed, pin_memory=on_gpu)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scale the images of a batch to [0, 1] on the device that they are on; masks become class numbers."""
        if isinstance(batch, dict) and "image" in batch and batch["image"].dtype == torch.uint8:
            batch = {**batch, "image": batch["image"].float() / 255}
            if "mask" in batch:
                batch["mask"] = batch["mask"].long()
        return batch

    def label_counts(self, part: Part = "train") -> torch.Tensor:
        """Return int64 [num_classes], the objects (or pixels) of every class in a part."""
        return self._part(part).label_counts()

    def fingerprint(self, part: Part) -> str:
        """Return a hash of a part: which images, their pixels, and what is to be found in them."""
        return hashlib.blake2b(f"{self.name} {self._part(part).fingerprint()}".encode(), digest_size=16).hexdigest()

    def transform_fingerprint(self) -> str:
        """Return a hash of what happens to an image between its file and the model."""
        return hashlib.blake2b(f"dense, bilinear {self.size}".encode(), digest_size=16).hexdigest()

    def _part(self, part: Part) -> DenseSet:
        if part not in PARTS:
            raise unknown_name("part of the data", part, PARTS)
        return {"train": self.train_set, "val": self.val_set, "test": self.test_set}[part]


def _first(positions: splits.Ints, count: int | None, seed: int) -> splits.Ints:
    """Return the first ``count`` positions of an order drawn from the seed, sorted."""
    if count is None or count >= len(positions):
        return positions
    return np.sort(np.random.default_rng([seed, 1]).permutation(positions)[:count])
