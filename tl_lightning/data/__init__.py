"""Image sets, splits, domain shifts and the data module that serves them."""

from tl_lightning.data.card import DatasetCard
from tl_lightning.data.datamodule import TransferDataModule
from tl_lightning.data.datasets import DATASETS, dataset_card
from tl_lightning.data.images import ImageSet
from tl_lightning.data.loader import BatchLoader
from tl_lightning.data.shifts import CORRUPTIONS, SHIFTS, corrupt

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "SHIFTS",
    "BatchLoader",
    "DatasetCard",
    "ImageSet",
    "TransferDataModule",
    "corrupt",
    "dataset_card",
]
