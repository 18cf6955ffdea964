"""LightningModules for the tasks."""

from typing import TYPE_CHECKING

from tl_lightning._lazy import lazy_exports
from tl_lightning.tasks.base import NonFiniteLossError, TaskModule
from tl_lightning.tasks.classification import TransferModule

if TYPE_CHECKING:
    from tl_lightning.tasks.detection import DetectionModule
    from tl_lightning.tasks.segmentation import SegmentationModule

__all__ = ["DetectionModule", "NonFiniteLossError", "SegmentationModule", "TaskModule", "TransferModule"]

# pycocotools and torchvision's detectors take their time to import
_EXPORTS = {
    "DetectionModule": "tl_lightning.tasks.detection",
    "SegmentationModule": "tl_lightning.tasks.segmentation",
}
__getattr__, _ = lazy_exports(__name__, _EXPORTS)
