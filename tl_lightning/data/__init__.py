"""Image sets, splits, domain shifts and the data module that serves them."""

from tl_lightning.data.datamodule import TransferDataModule
from tl_lightning.data.datasets import DATASETS, DatasetCard, dataset_card
from tl_lightning.data.images import ImageSet
from tl_lightning.data.loader import BatchLoader

__all__ = ["DATASETS", "BatchLoader", "DatasetCard", "ImageSet", "TransferDataModule", "dataset_card"]
