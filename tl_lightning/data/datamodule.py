"""The data module: a set by name, split and subset by seed, served in uint8 batches, scaled on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional as F

from tl_lightning.data.assembly import Shift, assemble
from tl_lightning.data.cache import FORMAT, cache_root
from tl_lightning.data.classes import only_classes
from tl_lightning.data.datasets import DatasetCard, dataset_card
from tl_lightning.data.images import ImageSet, RawSet
from tl_lightning.data.loader import BatchLoader
from tl_lightning.data.partition import PARTS, Part, Partition
from tl_lightning.data.pixels import StreamedPixels
from tl_lightning.data.shifts import check_shift
from tl_lightning.data.sources import PixelSource
from tl_lightning.data.store import Storage
from tl_lightning.data.summary import summary
from tl_lightning.data.torchvision_sets import LOADERS
from tl_lightning.data.unlabelled import PredictedImages, unlabelled_files, unlabelled_images
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.paths import user_path

SIZES = range(8, 4097)


class TransferDataModule(LightningDataModule):
    """Image classification data: decoded once to uint8, served in batches, resized on the device that trains.

    Batches leave the loaders as ``{"image": uint8 [B, C, S, S], "label": int64 [B], "index": int64 [B]}`` and reach
    the model with ``image`` as float32 [B, 3, image_size, image_size] in 0..1. ``index`` is the position in the part
    (``train_set.images[index]``); ``train_set.indices[index]`` is that in the published part. S is ``image_size``, or
    the images' own size where that is smaller.

    The seed fixes the validation split, the subset, the label noise and the order of batches. The test part and the
    corrupted images never depend on it.

    Args:
        name: A name in ``DATASETS``.
        data_dir: Folder of the images (``imagefolder``), or of what torchvision downloads.
        image_size: Side in pixels of what the model gets, 8 to 4096.
        batch_size: Training images a batch (on each rank).
        eval_batch_size: Validation and test images a batch.
        samples_per_class: Training images of every class; None for all.
        fraction: Part of every class's training images; None for all.
        val_fraction: Part of the training images to validate on, where the set has no validation part of its own.
        test_fraction: Part of all images to test on, where the set has no test part of its own.
        val_samples: At most so many validation images.
        test_samples: At most so many test images.
        seed: See above.
        classes: Names of the classes to keep, numbered in this order; all of the set's by default.
        label_noise: Part of the training labels replaced by another class.
        corruption: A name in ``shifts.SHIFTS``; None for clean images.
        severity: Of the corruption, 1 to 5.
        corrupt_parts: Parts whose images are corrupted.
        workers: Processes that decode each batch anew from the files, for sets that fit neither memory nor disk; with
            0 images are decoded once. The images and their order are the same either way.
        download: Whether to download what is missing.
        on_bad_image: ``error`` at an image that cannot be read, or ``skip`` it; ``skipped`` counts those left out.
        cache_dir: Folder for decoded images and downloads; by default ``$TL_LIGHTNING_CACHE`` or
            ``~/.cache/tl_lightning``.
        memory_limit_mb: Decoded images above this are memory-mapped from the cache folder.
        predict_dir: Folder of images without labels to predict; the test part by default.

    Raises:
        UserError: From the constructor for a value that cannot be; from ``setup`` for data that is missing or unusable.
    """

    train_set: ImageSet
    val_set: ImageSet
    test_set: ImageSet

    def __init__(
        self,
        name: str = "elpv",
        data_dir: str | None = None,
        *,
        image_size: int = 96,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        samples_per_class: int | None = None,
        fraction: float | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.25,
        val_samples: int | None = None,
        test_samples: int | None = None,
        seed: int = 0,
        classes: Sequence[str] | None = None,
        label_noise: float = 0.0,
        corruption: str | None = None,
        severity: int = 3,
        corrupt_parts: Sequence[Part] = ("test",),
        workers: int = 0,
        download: bool = True,
        on_bad_image: Literal["error", "skip"] = "error",
        cache_dir: str | None = None,
        memory_limit_mb: int = 2048,
        predict_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.card: DatasetCard = dataset_card(name)
        self.partition = Partition(
            seed, val_fraction, test_fraction, samples_per_class, fraction, val_samples, test_samples
        )
        self.name = name
        self.data_dir = data_dir
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.classes = None if classes is None else tuple(classes)
        self.label_noise = label_noise
        self.corruption = corruption
        self.severity = severity
        self.corrupt_parts = tuple(corrupt_parts)
        self.workers = workers
        self.download = download
        self.on_bad_image = on_bad_image
        self.cache_dir = cache_dir
        self.memory_limit_mb = memory_limit_mb
        self.predict_dir = predict_dir
        self.skipped = 0
        self.class_names: list[str] = []
        self._sources: dict[Part, PixelSource] = {}
        self._check()

    def _check(self) -> None:
        if self.image_size not in SIZES:
            raise UserError(f"image_size must be {SIZES[0]} to {SIZES[-1]} pixels, but is {self.image_size}")
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("workers", 0), ("memory_limit_mb", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        if not 0 <= self.label_noise <= 1:
            raise UserError(f"label_noise must lie between 0 and 1, but is {self.label_noise}")
        if self.on_bad_image not in ("error", "skip"):
            raise unknown_name("value of on_bad_image", self.on_bad_image, ("error", "skip"))
        check_shift(self.corruption or "none", self.severity)
        for part in self.corrupt_parts:
            _check_part(part)
        if self.corruption == "saturate" and self.card.channels == 1:
            raise UserError(f"corruption saturate changes nothing in the grey images of {self.name}; choose another")

    @property
    def _shift(self) -> Shift | None:
        shifted = self.corruption not in (None, "none")
        return Shift(self.corruption or "none", self.severity, self.corrupt_parts) if shifted else None

    @property
    def num_classes(self) -> int:
        """Number of classes, known after ``setup``."""
        return len(self.class_names)

    def __str__(self) -> str:
        """Return what it holds."""
        return summary(self, self.card.name, (self.image_size, self.image_size), self.batch_size, self.class_names)

    __repr__ = __str__

    def prepare_data(self) -> None:
        """Download what is missing (Lightning calls this on one process of a machine)."""
        if self.download and self.name in LOADERS and not self.class_names and self.predict_dir is None:
            self._load(download=True)

    def setup(self, stage: str | None = None) -> None:
        """Load, split and decode; does its work once. To predict a folder needs neither classes nor labels."""
        if stage == "predict" and self.predict_dir is not None:
            paths, skips = unlabelled_files(self.predict_dir), self.on_bad_image == "skip"
            found = unlabelled_images(paths, self.card.channels, self.image_size, skip_bad=skips)
            self._unlabelled, self._unlabelled_names = found
            return
        if self.class_names:
            return
        # Other ranks wait for rank 0's `prepare_data`; two downloads into one folder would spoil each other.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        raw = self._load(download=self.download and not distributed)
        if self.classes is not None:
            raw = only_classes(raw, self.classes)
        streamed, checked = self.workers > 0, self.on_bad_image == "skip"
        storage = Storage(cache_root(self.cache_dir), self.memory_limit_mb * 2**20, streamed, checked)
        made = assemble(
            self.partition.divide(raw),
            raw.class_names,
            min(self.image_size, max(part.source.native_size() for part in raw.parts.values())),
            storage,
            shift=self._shift,
            on_bad_image=self.on_bad_image,
            label_noise=self.label_noise,
            seed=self.seed,
        )
        self.train_set, self.val_set, self.test_set = (made.sets[part] for part in PARTS)
        self.skipped = made.skipped
        self._sources = made.sources
        self.class_names = list(raw.class_names)

    def _load(self, download: bool) -> RawSet:
        return self.card.load(user_path(self.data_dir) if self.data_dir else None, download)

    def train_dataloader(self) -> BatchLoader:
        """Return the shuffling loader of the training set (in the set's order when the trainer overfits batches)."""
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        return self._loader(self.train_set, self.batch_size, shuffle=not overfit)

    def val_dataloader(self) -> BatchLoader:
        """Return the loader of the validation set."""
        return self._loader(self.val_set, self.eval_batch_size)

    def test_dataloader(self) -> BatchLoader:
        """Return the loader of the test set."""
        return self._loader(self.test_set, self.eval_batch_size)

    def predict_dataloader(self) -> BatchLoader:
        """Return the loader of the images without labels, or of the test set."""
        return self._loader(self.test_set if self.predict_dir is None else self._unlabelled, self.eval_batch_size)

    def predicted_images(self) -> PredictedImages:
        """Return what to call the images of ``predict_dataloader``, by their ``index``."""
        if self.predict_dir is not None:
            return self._unlabelled_names
        positions = self.test_set.indices.tolist()
        paths = getattr(self._sources["test"], "paths", None)
        return PredictedImages(tuple(paths[p] if paths else str(p) for p in positions), paths is not None)

    def _loader(self, image_set: ImageSet, batch_size: int, shuffle: bool = False) -> BatchLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        workers = self.workers if isinstance(image_set.pixels, StreamedPixels) else 0
        return BatchLoader(image_set, batch_size, shuffle=shuffle, seed=self.seed, workers=workers, pin_memory=on_gpu)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scale and resize the images of a batch on the device that they are on."""
        if isinstance(batch, dict) and "image" in batch and batch["image"].dtype == torch.uint8:
            batch = {**batch, "image": self.resize(batch["image"])}
        return batch

    def resize(self, images: Tensor) -> Tensor:
        """Return float32 [N, 3, image_size, image_size] in 0..1 from uint8 [N, 1 or 3, S, S]."""
        pixels = images / 255
        if pixels.shape[-1] != self.image_size:
            size = [self.image_size, self.image_size]
            shrinks = pixels.shape[-1] > self.image_size
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=shrinks).clamp(0, 1)
        return pixels.expand(-1, 3, -1, -1).contiguous() if pixels.shape[1] == 1 else pixels

    def label_counts(self, part: Part = "train") -> Tensor:
        """Return int64 [num_classes], the images of every class in a part."""
        return self._part(part).label_counts()

    def fingerprint(self, part: Part) -> str:
        """Return a hash of a part: which images, their labels, their shift and (of up to 1,024) their pixels.

        The same on every machine that holds the same images; see ``content_key`` for a hash that also changes when
        one of very many files is replaced.
        """
        image_set = self._part(part)
        shift = self._shift if self._shift is not None and part in self._shift.parts else None
        text = f"{self.name} {shift} {image_set.content_hash()}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def content_key(self, part: Part) -> str:
        """Return a hash of a part for caches on this machine: its fingerprint, and its files' sizes and times."""
        text = f"{self.fingerprint(part)} {self._sources[part].content_key()}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def transform_fingerprint(self) -> str:
        """Return a hash of what happens to an image between its file and the model."""
        text = f"decode {FORMAT}, bilinear {self.image_size}, stored {self.train_set.shape[-1]}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _part(self, part: Part) -> ImageSet:
        _check_part(part)
        return {"train": self.train_set, "val": self.val_set, "test": self.test_set}[part]


def _check_part(part: str) -> None:
    if part not in PARTS:
        raise unknown_name("part of the data", part, PARTS)
