"""Image sets, splits, domain shifts and the data modules that serve them."""

from typing import TYPE_CHECKING

from tl_lightning._lazy import lazy_exports
from tl_lightning.data.card import DatasetCard
from tl_lightning.data.datamodule import TransferDataModule
from tl_lightning.data.datasets import DATASETS, dataset_card
from tl_lightning.data.images import ImageSet
from tl_lightning.data.loader import BatchLoader
from tl_lightning.data.shifts import CORRUPTIONS, SHIFTS, corrupt

if TYPE_CHECKING:
    from tl_lightning.data.dense import DenseDataModule
    from tl_lightning.data.dense_datasets import DENSE_SETS

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "DENSE_SETS",
    "SHIFTS",
    "BatchLoader",
    "DatasetCard",
    "DenseDataModule",
    "ImageSet",
    "TransferDataModule",
    "corrupt",
    "dataset_card",
]

_EXPORTS = {"DENSE_SETS": "tl_lightning.data.dense_datasets", "DenseDataModule": "tl_lightning.data.dense"}
__getattr__, _ = lazy_exports(__name__, _EXPORTS)
