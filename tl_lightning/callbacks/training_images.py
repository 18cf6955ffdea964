"""The training images once more, beside the epoch that is running."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sized
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler


def same_images(loader: Any, trainer: pl.Trainer) -> Any:
    """Return a loader of the images of a training loader, which keeps its place in the data and its workers.

    Where it can be chosen, the order is random, and always the same.
    """
    if not isinstance(loader, DataLoader):
        return copy.copy(loader)  # its place in the data is its own state
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        alike = copy.copy(loader)
        alike._iterator = None  # that of workers which live on from epoch to epoch
        return alike
    return DataLoader(
        loader.dataset,
        loader.batch_size,
        sampler=_order(loader, trainer),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator().manual_seed(0),
    )


def _order(loader: DataLoader[Any], trainer: pl.Trainer) -> Iterable[int]:
    """Return the images that a loader draws in an epoch, in random order; its sampler is left as it is."""
    generator = torch.Generator().manual_seed(0)
    own, dataset = loader.sampler, loader.dataset
    if type(own) not in (SequentialSampler, RandomSampler, DistributedSampler):  # it may leave images out
        count = len(own) if isinstance(own, Sized) else len(dataset)  # type: ignore[arg-type]
        drawn = list(islice(copy.deepcopy(own, {id(dataset): dataset}), count))  # a copy, but not of the data
        return [drawn[position] for position in torch.randperm(len(drawn), generator=generator).tolist()]
    if trainer.world_size > 1:
        return DistributedSampler(dataset, trainer.world_size, trainer.global_rank)
    return RandomSampler(dataset, generator=generator)  # type: ignore[arg-type]
