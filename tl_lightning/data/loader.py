"""Batches in an order that is a pure function of (seed, epoch), resumable in mid-epoch and divided by rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tl_lightning.data.decoding import BadImageError
from tl_lightning.data.images import ImageSet
from tl_lightning.errors import UserError

Batch = dict[str, Tensor]
Order = NDArray[np.int64]


class EpochOrder:
    """The order of one epoch's images; Lightning calls ``set_epoch`` before each.

    Args:
        count: Number of images.
        shuffle: Whether the order is random.
        seed: Same seed and epoch, same order.
    """

    def __init__(self, count: int, shuffle: bool, seed: int) -> None:
        self.count = count
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration serves."""
        self.epoch = epoch

    def order(self, epoch: int) -> Order:
        """Return int64 [count]."""
        if not self.shuffle:
            return np.arange(self.count)
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)

    def __len__(self) -> int:
        return self.count


class BatchLoader:
    """Serve an image set in batches ``{"image": uint8 [B, C, S, S], "label": int64 [B], "index": int64 [B]}``.

    ``index`` is the position in the image set. A shuffling (training) loader leaves out a last batch of one image,
    since BatchNorm cannot be trained on it, unless that is the only batch. When ``torch.distributed`` is
    initialised, every rank serves its own part in the same number of batches: a shuffling loader leaves out the
    images that do not divide evenly (others each epoch), a sequential one serves every image once.

    The state is that of the batches handed out: loading it makes the next iteration of the same epoch serve exactly
    the rest.

    Args:
        image_set: The images.
        batch_size: Images a batch (on each rank).
        shuffle: Random order (training) or the set's order (evaluation).
        seed: With the epoch, fixes the order.
        workers: Processes that gather batches (worth it only where images are read from files); 0 for this one.
        pin_memory: Put batches in page-locked memory, so that copies to a GPU overlap.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.image_set = image_set
        self.batch_size = batch_size
        self.workers = workers
        self.pin_memory = pin_memory
        self.sampler = EpochOrder(len(image_set), shuffle, seed)
        self.batch_sampler = None  # Lightning asks every loader that has a sampler for it
        self._served = 0
        self._served_epoch = 0
        self._resume: tuple[int, int] | None = None
        self._pool: DataLoader[Any] | None = None
        self._pool_batches: list[Order] = []

    def __len__(self) -> int:
        return len(self._batches(0))

    def __copy__(self) -> BatchLoader:
        """Return a loader of the same batches with workers and a place in the data of its own."""
        alike = type(self).__new__(type(self))
        vars(alike).update(vars(self), _pool=None, _pool_batches=[], _resume=None)
        return alike

    def __iter__(self) -> Iterator[Batch]:
        # A generator reads the epoch at its first batch: Lightning creates the iterator before it sets the epoch.
        return self._serve()

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were handed out."""
        return {
            "epoch": self._served_epoch,
            "batches": self._served,
            "batch_size": self.batch_size,
            "images": len(self.image_set),
            "seed": self.sampler.seed,
            "ranks": _ranks()[1],
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue behind the batches that were handed out.

        Raises:
            UserError: The state is of other batches (another batch size, seed, number of images or processes).
        """
        own = self.state_dict()
        for key in ("batch_size", "images", "seed", "ranks"):
            if state[key] != own[key]:
                raise UserError(
                    f"cannot resume in mid-epoch: {key} was {state[key]} when the checkpoint was written and is now "
                    f"{own[key]}; use the same value, or a checkpoint from the end of an epoch"
                )
        self._resume = (state["epoch"], state["batches"])

    def _serve(self) -> Iterator[Batch]:
        epoch = self.sampler.epoch
        start = 0
        if self._resume is not None and self._resume[0] == epoch:
            start = self._resume[1]
        self._resume = None
        self._served_epoch, self._served = epoch, start
        for batch in self._gather(self._batches(epoch)[start:]):
            self._served += 1
            yield batch

    def _batches(self, epoch: int) -> list[Order]:
        rank, ranks = _ranks()
        return rank_batches(self.sampler.order(epoch), self.batch_size, rank, ranks, even=self.sampler.shuffle)

    def _gather(self, batches: list[Order]) -> Iterator[Batch]:
        if self.workers:
            yield from self._gather_in_workers(batches)
            return
        for positions in batches:
            try:
                batch = gather_batch(self.image_set, positions)
            except BadImageError as error:
                raise _bad_image(str(error)) from error
            yield {k: v.pin_memory() for k, v in batch.items()} if self.pin_memory else batch

    def _gather_in_workers(self, batches: list[Order]) -> Iterator[Batch]:
        self._pool_batches[:] = batches  # the pool's sampler: workers live on from epoch to epoch
        if self._pool is None:
            self._pool = DataLoader(
                _GatheredBatches(self.image_set),
                sampler=self._pool_batches,
                batch_size=None,
                num_workers=self.workers,
                pin_memory=self.pin_memory,
                persistent_workers=True,
            )
        for batch in self._pool:
            if "error" in batch:
                raise _bad_image(batch["error"])
            yield batch


class _GatheredBatches(Dataset[dict[str, Any]]):
    def __init__(self, image_set: ImageSet) -> None:
        self.image_set = image_set

    def __getitem__(self, positions: Order) -> dict[str, Any]:
        try:
            return dict(gather_batch(self.image_set, positions))
        except BadImageError as error:  # an exception would arrive as a traceback of many lines
            return {"error": str(error)}


def gather_batch(image_set: ImageSet, positions: Order) -> Batch:
    """Return the batch of the images at ``positions``."""
    index = torch.from_numpy(positions)
    return {"image": image_set.gather(index), "label": image_set.labels[index], "index": index}


def rank_batches(order: Order, batch_size: int, rank: int, ranks: int, *, even: bool) -> list[Order]:
    """Divide an order among ranks and cut a rank's share into batches, the same number on every rank.

    Args:
        order: int64 [N].
        batch_size: Images a batch on one rank.
        rank: This rank.
        ranks: Number of ranks.
        even: Same number of images on every rank, and no last batch of one image (training); otherwise every image
            is served exactly once (evaluation), for which a last batch may hold one image more.
    """
    if even:
        order = order[: max(len(order) // ranks * ranks, min(len(order), ranks))]
    share = order[rank::ranks]
    if len(share) == 0:  # fewer images than ranks: every rank must have a batch, or the others wait for ever
        share = order[:1]
    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    if even and len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        batches.pop()
    fewest = max(1, -(-(len(order) // ranks) // batch_size))
    if len(batches) > fewest:  # one image more than the shorter shares: it joins the batch before
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def _bad_image(message: str) -> UserError:
    return UserError(f"{message}; repair or remove it, or leave such images out (--on-bad-image skip)")


def _ranks() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
