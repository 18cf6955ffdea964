"""Activations of the images of a data module, part by part."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tl_lightning.activations.cache import ActivationCache
from tl_lightning.activations.extraction import FrozenPrefix, Transform, device_of, graph_at, prefix_fingerprint
from tl_lightning.activations.rows import Activations
from tl_lightning.backbones.graph import trace
from tl_lightning.data.augment import Augmentation
from tl_lightning.data.augment.random import BatchPosition
from tl_lightning.data.datamodule import Part, TransferDataModule
from tl_lightning.data.images import ImageSet
from tl_lightning.data.loader import BatchLoader, rank_batches

_CHUNK = 256
_IDS: WeakKeyDictionary[ImageSet, list[str]] = WeakKeyDictionary()


class Rows(Protocol):
    """Activations of a list of images, kept or computed."""

    def __len__(self) -> int: ...

    def gather(self, positions: Tensor) -> Tensor:
        """Return float32 [n, ...]."""


class PartActivations:
    """The activations of a data module's images at boundaries of a module, computed where they are not kept.

    Args:
        datamodule: The images; set up.
        module: A module with ``backbone`` and ``normalise`` (a ``TaskModule``), of which ``boundaries`` names
            boundaries; or a frozen part of a model that takes images in [0, 1].
        boundaries: Names of boundaries; one name, free to choose, where ``module`` is such a part.
        cache: Where activations are kept.
        reduce: Applied to the activations, for example ``global_average``.
        device: Where to compute; by default where the module is.

    Attributes:
        seconds: Time spent on computing so far.
    """

    def __init__(
        self,
        datamodule: TransferDataModule,
        module: nn.Module,
        boundaries: Sequence[str],
        cache: ActivationCache,
        *,
        reduce: Transform | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.datamodule = datamodule
        self.cache = cache
        self.boundaries = tuple(boundaries)
        self.device = device or device_of(module)
        self.seconds = 0.0
        self._normalise: Transform | None = getattr(module, "normalise", None)
        self._graphs = _graphs(module, self.boundaries, reduce)
        self._groups = self._fingerprints()
        self._frozen: FrozenPrefix | None = None

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that the activations depend on, with their names in the backbone."""
        return list(self._graphs[self.boundaries].named_parameters())

    def part(self, part: Part) -> dict[str, Rows]:
        """Return the activations of a part in the order of its images, for every boundary.

        Where the cache cannot keep them, they are computed each time that they are asked for.
        """
        image_set = self._image_set(part)
        found = self.cache.collect(self._groups, image_ids(image_set), lambda rows: self._compute(image_set, rows))
        return {name: rows if rows is not None else LiveRows(self, image_set, name) for name, rows in found.items()}

    def view(self, loader: BatchLoader, augmentation: Augmentation, number: int) -> dict[str, Activations | None]:
        """Return the activations of the training images as augmented in an epoch of live training.

        Args:
            loader: The loader of the training images.
            augmentation: What a ``BatchAugmentation`` callback would do.
            number: The epoch whose order and random numbers are used.

        Returns:
            For every boundary the activations in the order of the images; None where they cannot be kept.
        """
        image_set = loader.image_set
        batches = _view_batches(loader, number)
        content = "".join(image_ids(image_set))
        text = f"{augmentation.fingerprint()} {number} {loader.sampler.seed} {loader.batch_size} {content}"
        groups = {name: _hash(f"{group} {text}") for name, group in self._groups.items()}
        order = torch.cat(batches)
        found = self.cache.collect(
            groups,
            [f"{position:032x}" for position in order.tolist()],
            lambda rows: self._compute_view(image_set, batches, rows, augmentation, number),
        )
        inverse = torch.argsort(order)
        return {name: rows.select(inverse) if rows is not None else None for name, rows in found.items()}

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """Return the activations of float images [B, C, H, W] in [0, 1]."""
        if self._frozen is None:
            self._frozen = FrozenPrefix(self._graphs[self.boundaries], self.device, self._normalise)
        start = time.perf_counter()
        outputs = self._frozen(images)
        self.seconds += time.perf_counter() - start
        return dict(zip(self.boundaries, outputs, strict=True))

    def load(self, image_set: ImageSet, positions: Tensor) -> Tensor:
        """Return images as the module sees them in training, float [n, 3, S, S], on the device."""
        return self.datamodule.resize(image_set.gather(positions).to(self.device))

    def _compute(self, image_set: ImageSet, rows: Tensor) -> Iterator[Mapping[str, Tensor]]:
        for positions in rows.split(_CHUNK):
            yield self.run(self.load(image_set, positions))

    def _compute_view(
        self, image_set: ImageSet, batches: Sequence[Tensor], rows: Tensor, augmentation: Augmentation, number: int
    ) -> Iterator[Mapping[str, Tensor]]:
        """Augment whole batches, as the random numbers of an image depend on its batch; yield the rows asked for."""
        start = 0
        for batch_idx, positions in enumerate(batches):
            wanted = rows[(rows >= start) & (rows < start + len(positions))] - start
            start += len(positions)
            if len(wanted):
                images = augmentation(self.load(image_set, positions), BatchPosition(number, batch_idx))
                yield self.run(images[wanted.to(self.device)])

    def _image_set(self, part: Part) -> ImageSet:
        return {"train": self.datamodule.train_set, "val": self.datamodule.val_set, "test": self.datamodule.test_set}[
            part
        ]

    def _fingerprints(self) -> dict[str, str]:
        """Return for each boundary the hash of all that its activations depend on but the images."""
        levels = torch.arange(3.0, device=self.device).expand(3, 3).T[:, :, None, None] / 2  # black, grey, white
        normalised = self._normalise(levels).flatten().tolist() if self._normalise is not None else []
        transform = self.datamodule.transform_fingerprint()
        common = f"{transform} {self.datamodule.image_size} {normalised} {self.device.type}"
        return {name: _hash(f"{name} {prefix_fingerprint(self._graphs[(name,)])} {common}") for name in self.boundaries}


class LiveRows:
    """Activations that are computed whenever they are asked for."""

    def __init__(self, source: PartActivations, image_set: ImageSet, boundary: str) -> None:
        self._source = source
        self._image_set = image_set
        self._boundary = boundary

    def __len__(self) -> int:
        return len(self._image_set)

    def gather(self, positions: Tensor) -> Tensor:
        """Return float32 [n, ...]."""
        return self._source.run(self._source.load(self._image_set, positions))[self._boundary]


def image_ids(image_set: ImageSet) -> list[str]:
    """Return a hash of every image's pixels, 32 hexadecimal digits; computed once for each set."""
    if image_set not in _IDS:
        ids: list[str] = []
        for positions in torch.arange(len(image_set)).split(_CHUNK):
            images = image_set.gather(positions)
            shape = str(tuple(images.shape[1:])).encode()
            ids += [hashlib.sha256(shape + image.tobytes()).hexdigest()[:32] for image in images.numpy()]
        _IDS[image_set] = ids
    return _IDS[image_set]


def _graphs(
    module: nn.Module, boundaries: tuple[str, ...], reduce: Transform | None
) -> dict[tuple[str, ...], nn.Module]:
    """Return the part of the model for every boundary, and for all of them together."""
    backbone = getattr(module, "backbone", None)
    if backbone is None:
        return {boundaries: module}
    traced = trace(backbone)
    wanted = {boundaries, *((name,) for name in boundaries)}
    return {names: graph_at(backbone, names, reduce, traced) for names in wanted}


def _view_batches(loader: BatchLoader, epoch: int) -> list[Tensor]:
    """Return the positions of every batch of an epoch, with those at the end that the loader leaves out."""
    order = loader.sampler.order(epoch)
    batches = rank_batches(order, loader.batch_size, rank=0, ranks=1, even=loader.sampler.shuffle)
    served = sum(len(batch) for batch in batches)
    return [torch.from_numpy(batch) for batch in [*batches, order[served:]] if len(batch)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
