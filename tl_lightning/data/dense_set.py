"""Decoded images with boxes or masks, and the batches made of them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from tl_lightning.data.dense_datasets import Task
from tl_lightning.data.dense_sources import Example, ExampleSource, Size
from tl_lightning.data.loader import BatchLoader, Order
from tl_lightning.data.sources import available_cores
from tl_lightning.data.splits import Ints

DenseBatch = dict[str, Any]

_SHARED_STORES = 6
_shared: OrderedDict[tuple[str, Size], dict[int, Example]] = OrderedDict()  # trials of a study decode images once


def read_examples(source: ExampleSource, positions: Ints, size: Size) -> list[Example]:
    """Return the examples at ``positions``, decoded in threads and kept for later calls in this process.

    Raises:
        UserError: A file is unusable.
    """
    key = (source.content_key(), size)
    store = _shared.setdefault(key, {})
    _shared.move_to_end(key)
    while len(_shared) > _SHARED_STORES:
        _shared.popitem(last=False)
    missing = [int(position) for position in positions if int(position) not in store]
    with ThreadPoolExecutor(available_cores()) as pool:
        store.update(zip(missing, pool.map(lambda position: source.read(position, size), missing), strict=True))
    return [store[int(position)] for position in positions]


class DenseSet:
    """Images of one size with boxes or masks, in memory.

    Args:
        examples: The decoded images.
        task: ``"detection"`` or ``"segmentation"``: which of boxes and masks the batches hold.
        class_names: See ``RawDenseSet``.
        indices: int64 [N], the position of every image in the published part.
    """

    def __init__(self, examples: Sequence[Example], task: Task, class_names: Sequence[str], indices: Tensor) -> None:
        self.examples = tuple(examples)
        self.task = task
        self.class_names = tuple(class_names)
        self.indices = indices

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def images(self) -> Tensor:
        """All images, uint8 [N, 3, H, W] (a copy)."""
        return torch.stack([torch.from_numpy(example.image) for example in self.examples])

    def batch(self, index: Tensor) -> DenseBatch:
        """Return the batch of the images at positions ``index``; see ``DenseDataModule`` for its form."""
        chosen = [self.examples[i] for i in index.tolist()]
        batch: DenseBatch = {"image": torch.stack([torch.from_numpy(e.image) for e in chosen]), "index": index}
        if self.task == "segmentation":
            batch["mask"] = torch.stack([torch.from_numpy(e.mask) for e in chosen])
        else:
            for name in ("boxes", "labels", "crowd"):
                batch[name] = [torch.from_numpy(getattr(e, name)) for e in chosen]
        return batch

    def label_counts(self) -> Tensor:
        """Return int64 [classes]: the objects of every class, or its pixels; crowds and void left out."""
        first = 1 if self.task == "detection" else 0
        total = torch.zeros(len(self.class_names), dtype=torch.int64)
        for example in self.examples:
            values = example.labels[~example.crowd] if self.task == "detection" else example.mask[example.mask < 255]  # type: ignore[index,operator]
            total += torch.bincount(torch.from_numpy(values).long().flatten() - first, minlength=len(total))
        return total

    def fingerprint(self) -> str:
        """Return a hash of the images and of what is to be found in them."""
        digest = hashlib.blake2b(f"{self.task} {self.class_names}".encode(), digest_size=16)
        digest.update(self.indices.numpy().tobytes())
        for example in self.examples:
            targets = (example.mask,) if self.task == "segmentation" else (example.boxes, example.labels, example.crowd)
            for array in (example.image, *targets):
                digest.update(array.tobytes())
        return digest.hexdigest()


class DenseLoader(BatchLoader):
    """Serve a dense set in batches; order, resume and ranks are those of ``BatchLoader``.

    Args:
        dense_set: The images, a ``DenseSet`` or an ``UnlabelledSet``.
        batch_size: Images a batch (on each rank).
        shuffle: Random order (training) or the set's order (evaluation).
        seed: With the epoch, fixes the order.
        pin_memory: Put images and masks in page-locked memory, so that copies to a GPU overlap.
    """

    image_set: Any  # a DenseSet in place of an ImageSet

    def __init__(
        self,
        dense_set: Any,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(dense_set, batch_size, shuffle=shuffle, seed=seed, pin_memory=pin_memory)

    def _gather(self, batches: list[Order]) -> Iterator[DenseBatch]:
        for positions in batches:
            batch = self.image_set.batch(torch.from_numpy(positions))
            if self.pin_memory:
                batch |= {name: value.pin_memory() for name, value in batch.items() if isinstance(value, Tensor)}
            yield batch
