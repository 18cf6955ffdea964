"""Training on activations that a frozen prefix has computed once.

``CachedDataModule`` serves the activations of a data module's images at a boundary, in the order of the images that
it replaces; ``PartActivations`` returns those of several boundaries from one pass; ``compute_activations`` and
``record`` do the same for plain tensors; ``train_heads`` trains linear heads of many seeds and rates on them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from tl_lightning.activations.cache import ActivationCache
from tl_lightning.activations.extraction import (
    FrozenPrefix,
    compute_activations,
    global_average,
    prefix_fingerprint,
    record,
)
from tl_lightning.activations.images import PartActivations, Rows
from tl_lightning.activations.linear_heads import train_heads
from tl_lightning.activations.rows import Activations
from tl_lightning.backbones.graph import Boundary
from tl_lightning.data.augment import Augmentation
from tl_lightning.data.datamodule import Part, TransferDataModule
from tl_lightning.data.loader import Batch, BatchLoader
from tl_lightning.errors import UserError

__all__ = [
    "ActivationCache",
    "Activations",
    "CachedDataModule",
    "FrozenPrefix",
    "PartActivations",
    "compute_activations",
    "global_average",
    "prefix_fingerprint",
    "record",
    "train_heads",
]


class CachedDataModule(LightningDataModule):
    """Serves ``{"activation", "label", "index"}`` in place of a data module's images, in the same order.

    The activations are those of the module in eval mode, so training on them equals training with a prefix that is
    frozen in eval mode. They are computed, where the cache lacks them, when a loader is made, from the weights that
    the module has then. A module with ``use_suffix`` (a ``TaskModule``) is given the rest of its backbone to run.

    Args:
        datamodule: The images.
        module: A ``TaskModule`` (it needs ``backbone``, ``stages`` and ``normalise``), or a frozen part of a model
            that takes images in [0, 1].
        boundary: Where the frozen prefix ends; a name of one's choice where ``module`` is such a part. May be
            set anew between epochs, and holds for the loaders that are made then.
        cache: Where the activations are kept; by default in memory, for this data module alone.
        views: With random augmentation the number of augmented copies of each training image. Epoch ``e`` serves the
            copies of epoch ``e % views`` of live training.
        augmentation: The random augmentation, as of ``BatchAugmentation(...).augmentation``.

    Raises:
        UserError: Random augmentation without views, parameters before the boundary that should train, or
            views that the cache cannot hold.
    """

    def __init__(
        self,
        datamodule: TransferDataModule,
        module: nn.Module,
        boundary: Boundary | str,
        cache: ActivationCache | None = None,
        *,
        views: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        _check_views(views, augmentation)
        self.datamodule = datamodule
        self.module = module
        self.boundary = boundary
        self.cache = cache if cache is not None else ActivationCache()
        self.views = views
        self.augmentation = augmentation
        self.extraction_seconds = 0.0
        self._train_loader: ActivationLoader | None = None
        self._resume: dict[str, int] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, known after ``setup``."""
        return self.datamodule.num_classes

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, known after ``setup``."""
        return self.datamodule.class_names

    def __str__(self) -> str:
        """Return what it holds."""
        return f"{type(self).__name__} at {self._name!r} of {self.datamodule}"

    __repr__ = __str__

    def prepare_data(self) -> None:
        """Download what is missing."""
        self.datamodule.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Load and split the images."""
        self.datamodule.setup(stage)

    def train_dataloader(self) -> ActivationLoader:
        """Return the loader of the training part."""
        self.datamodule.trainer = self.trainer
        loader = self.datamodule.train_dataloader()
        source = self._source()
        rows = self._views(source, loader) if self.views else [self._placed(source.part("train")[self._name])]
        self.extraction_seconds += source.seconds
        self._train_loader = ActivationLoader(loader, rows, lambda: _check_frozen(source, self._name))
        if self._resume is not None:
            self._train_loader.load_state_dict(self._resume)
            self._resume = None
        return self._train_loader

    def val_dataloader(self) -> ActivationLoader:
        """Return the loader of the validation part."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> ActivationLoader:
        """Return the loader of the test part."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training data.

        Lightning keeps it too, but loses it where ``configure_optimizers`` asks for the number of steps: the loader is
        then made before the state is there.
        """
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a place in the training data."""
        self._resume = state_dict.get("train_loader")

    def _evaluation_loader(self, part: Part) -> ActivationLoader:
        self.datamodule.trainer = self.trainer
        loader = self.datamodule.val_dataloader() if part == "val" else self.datamodule.test_dataloader()
        source = self._source()
        rows = self._placed(source.part(part)[self._name])
        self.extraction_seconds += source.seconds
        return ActivationLoader(loader, [rows])

    @property
    def _name(self) -> str:
        return self.boundary.name if isinstance(self.boundary, Boundary) else self.boundary

    def _source(self) -> PartActivations:
        if hasattr(self.module, "use_suffix"):
            self.module.use_suffix(self.module.stages.split(self._name)[1])  # type: ignore[operator]
        device = self.trainer.strategy.root_device if self.trainer is not None else None
        return PartActivations(self.datamodule, self.module, [self._name], self.cache, device=device)

    def _views(self, source: PartActivations, loader: BatchLoader) -> list[Rows]:
        rows: list[Rows] = []
        for number in range(self.views):
            view = source.view(loader, self.augmentation, number)[self._name]  # type: ignore[arg-type]
            if view is None:
                raise UserError(
                    f"the activation cache cannot hold {self.views} views at {self._name!r}: give it more room, "
                    "take fewer views or a deeper boundary, or train without the cache"
                )
            rows.append(self._placed(view))
        return rows

    def _placed(self, rows: Rows) -> Rows:
        """Return the activations on the GPU where they take at most half of its free memory."""
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        if device.type != "cuda" or not isinstance(rows, Activations):
            return rows
        share = torch.cuda.mem_get_info(device)[0] / (2 * max(self.views, 1))
        return rows.to(device) if rows.nbytes < share else rows


class ActivationLoader(BatchLoader):
    """Serves activations in the place, and in the order, of the images of another loader.

    Args:
        loader: The loader of the images.
        views: The activations of its images; epoch ``e`` serves ``views[e % len(views)]``.
        check: Called before each epoch.
    """

    def __init__(self, loader: BatchLoader, views: Sequence[Rows], check: Callable[[], None] | None = None) -> None:
        self._set = _ActivationSet(views, loader.image_set.labels)
        super().__init__(
            self._set,  # type: ignore[arg-type]
            loader.batch_size,
            shuffle=loader.sampler.shuffle,
            seed=loader.sampler.seed,
            pin_memory=loader.pin_memory and not self._set.on_gpu,
        )
        self._check = check

    def __iter__(self) -> Iterator[Batch]:
        return self._renamed(super().__iter__())

    def _renamed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self._check is not None:
            self._check()
        self._set.epoch = self.sampler.epoch
        for batch in batches:
            batch["activation"] = batch.pop("image")
            yield batch


class _ActivationSet:
    """What a loader needs of an image set."""

    def __init__(self, views: Sequence[Rows], labels: Tensor) -> None:
        self.views = views
        self.labels = labels
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def on_gpu(self) -> bool:
        first: Any = self.views[0]
        return bool(len(self)) and first.gather(torch.zeros(1, dtype=torch.long)).is_cuda

    def gather(self, positions: Tensor) -> Tensor:
        return self.views[self.epoch % len(self.views)].gather(positions)


def _check_views(views: int, augmentation: Augmentation | None) -> None:
    if views < 0:
        raise UserError(f"views must be at least 0, not {views}")
    random = augmentation is not None and augmentation.enabled
    if random and views == 0:
        raise UserError(
            "random augmentation changes the images in every epoch, so that their activations cannot be kept: "
            "say how many augmented copies of each image to keep (views=K), or train without the cache"
        )
    if views and not random:
        raise UserError(f"views={views} needs a random augmentation: without one all copies of an image are the same")


def _check_frozen(source: PartActivations, boundary: str) -> None:
    trainable = [name for name, parameter in source.parameters if parameter.requires_grad]
    if trainable:
        raise UserError(
            f"{len(trainable)} parameters before {boundary!r} should train ({trainable[0]}, ...), but cached "
            "activations never reach them: freeze them, or move the boundary before them"
        )
