"""The data module: a set by name, split and subset by seed, served in uint8 batches, scaled on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional as F

from tl_lightning.data import splits
from tl_lightning.data.datasets import DatasetCard, dataset_card
from tl_lightning.data.images import ImageSet, RawPart, RawSet
from tl_lightning.data.loader import BatchLoader
from tl_lightning.data.pixels import DecodedPixels, Pixels
from tl_lightning.errors import UserError

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


class TransferDataModule(LightningDataModule):
    """Image classification data for transfer learning."""

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
        label_noise: float = 0.0,
        corruption: str | None = None,
        severity: int = 3,
        corrupt_parts: Sequence[Part] = ("test",),
        workers: int = 0,
        download: bool = True,
        on_bad_image: Literal["error", "skip"] = "error",
        cache_dir: str | None = None,
        memory_limit_mb: int = 2048,
    ) -> None:
        super().__init__()
        self.name = name
        self.card: DatasetCard = dataset_card(name)
        self.data_dir = data_dir
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.samples_per_class = samples_per_class
        self.fraction = fraction
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.val_samples = val_samples
        self.test_samples = test_samples
        self.seed = seed
        self.label_noise = label_noise
        self.corruption = corruption
        self.severity = severity
        self.corrupt_parts = tuple(corrupt_parts)
        self.workers = workers
        self.download = download
        self.on_bad_image = on_bad_image
        self.cache_dir = cache_dir
        self.memory_limit_mb = memory_limit_mb
        self.skipped = 0
        self.class_names: list[str] = []
        self._ready = False

    @property
    def num_classes(self) -> int:
        """Number of classes, known after ``setup``."""
        return len(self.class_names)

    def setup(self, stage: str | None = None) -> None:
        """Load, split and decode; does its work once."""
        if self._ready:
            return
        raw = self.card.load(Path(self.data_dir).expanduser() if self.data_dir else None, self.download)
        self.class_names = list(raw.class_names)
        native = max(part.source.native_size() for part in raw.parts.values())
        size = min(self.image_size, native)
        pixels: dict[int, Pixels] = {id(p.source): DecodedPixels(p.source, size) for p in raw.parts.values()}
        for name, (part, positions) in self._split(raw).items():
            store = pixels[id(part.source)]
            positions = self._readable(store, positions)
            labels = part.labels[positions]
            if name == "train" and self.label_noise:
                labels = splits.with_label_noise(labels, self.label_noise, len(raw.class_names), self.seed)
            image_set = ImageSet(store, torch.from_numpy(labels), raw.class_names, torch.from_numpy(positions))
            setattr(self, f"{name}_set", image_set)
        self._ready = True

    def _split(self, raw: RawSet) -> dict[Part, tuple[RawPart, splits.Ints]]:
        train = raw.parts["train"]
        strata = train.labels if train.strata is None else train.strata
        pool = np.arange(len(train.labels))
        chosen: dict[Part, tuple[RawPart, splits.Ints]] = {}
        if "test" not in raw.parts:
            pool, held = splits.stratified_holdout(strata, self.test_fraction, seed=0)
            chosen["test"] = (train, held)
        if "val" not in raw.parts:
            kept, held = splits.stratified_holdout(strata[pool], self.val_fraction, self.seed)
            chosen["val"] = (train, pool[held])
            pool = pool[kept]
        for name, cap in (("val", self.val_samples), ("test", self.test_samples)):
            if name in raw.parts:
                chosen[name] = (raw.parts[name], np.arange(len(raw.parts[name].labels)))  # type: ignore[index]
            part, positions = chosen[name]  # type: ignore[index]
            if cap is not None:
                positions = positions[splits.stratified_cap(part.labels[positions], cap, seed=0)]
                chosen[name] = (part, positions)  # type: ignore[index]
        labels = train.labels[pool]
        if self.samples_per_class is not None:
            pool = pool[splits.samples_per_class(labels, self.samples_per_class, self.seed, raw.class_names)]
        elif self.fraction is not None:
            pool = pool[splits.class_fraction(labels, self.fraction, self.seed)]
        return {"train": (train, pool), "val": chosen["val"], "test": chosen["test"]}

    def _readable(self, pixels: Pixels, positions: splits.Ints) -> splits.Ints:
        failures = pixels.prepare(positions)
        if not failures:
            return positions
        if self.on_bad_image == "error":
            raise UserError(
                f"{failures[min(failures)]}; repair or remove it, or leave such images out (--on-bad-image skip)"
            )
        self.skipped += len(failures)
        return positions[~np.isin(positions, list(failures))]

    def train_dataloader(self) -> BatchLoader:
        """Return the shuffling loader of the training set."""
        trainer = self.trainer
        overfit = trainer is not None and getattr(trainer, "overfit_batches", 0) > 0
        return self._loader(self.train_set, self.batch_size, shuffle=not overfit)

    def val_dataloader(self) -> BatchLoader:
        """Return the loader of the validation set."""
        return self._loader(self.val_set, self.eval_batch_size)

    def test_dataloader(self) -> BatchLoader:
        """Return the loader of the test set."""
        return self._loader(self.test_set, self.eval_batch_size)

    def _loader(self, image_set: ImageSet, batch_size: int, shuffle: bool = False) -> BatchLoader:
        return BatchLoader(image_set, batch_size, shuffle=shuffle, seed=self.seed, workers=self.workers)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scale and resize the images of a batch on the device that they are on."""
        if isinstance(batch, dict) and "image" in batch and batch["image"].dtype == torch.uint8:
            batch = {**batch, "image": self.resize(batch["image"])}
        return batch

    def resize(self, images: Tensor) -> Tensor:
        """Return float32 [N, 3, image_size, image_size] in 0..1 from uint8 [N, 1 or 3, S, S]."""
        pixels = images.float() / 255
        if pixels.shape[-1] != self.image_size:
            size = [self.image_size, self.image_size]
            shrinks = pixels.shape[-1] > self.image_size
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=shrinks).clamp(0, 1)
        return pixels.expand(-1, 3, -1, -1).contiguous() if pixels.shape[1] == 1 else pixels

    def label_counts(self, part: Part = "train") -> Tensor:
        """Return int64 [num_classes], the images of every class in a part."""
        return self._part(part).label_counts()

    def fingerprint(self, part: Part) -> str:
        """Return a hash of a part: which images, their labels, their corruption and their pixels."""
        image_set = self._part(part)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.name} {part} {self.corruption} {self.severity}".encode())
        digest.update(image_set.indices.numpy().tobytes())
        digest.update(image_set.labels.numpy().tobytes())
        picks = torch.linspace(0, len(image_set) - 1, min(len(image_set), 256)).long()
        digest.update(image_set.gather(picks).numpy().tobytes())
        return digest.hexdigest()

    def transform_fingerprint(self) -> str:
        """Return a hash of what happens to the pixels between the file and the model."""
        return hashlib.blake2b(f"bilinear {self.image_size}".encode(), digest_size=16).hexdigest()

    def _part(self, part: Part) -> ImageSet:
        return {"train": self.train_set, "val": self.val_set, "test": self.test_set}[part]
