"""The settings of the study of tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tl_lightning.study.settings import Settings

if TYPE_CHECKING:
    from tl_lightning.study.dense_training import DenseTask

METRICS = {"classification": "accuracy", "detection": "map", "segmentation": "miou"}
DENSE = ("detection", "segmentation")


@dataclass
class TaskSettings(Settings):
    """Settings of the study of tasks: ``data`` and ``data_dir`` are the images to classify.

    Args:
        tasks: Any of classification, detection and segmentation.
        sizes: Numbers of training images, of all classes together; epochs counts at the largest.
        detection_data: Set for detection: scenes (composed of handwritten digits), voc_boxes or coco_boxes.
        detection_dir: Folder of the set for detection.
        detector: faster_rcnn, retinanet or ssdlite.
        pyramid_channels: Channels of the detector's feature pyramid, a multiple of 32.
        segmentation_data: Set for segmentation: scenes, mask_folder, oxford_pet or voc_segmentation.
        segmentation_dir: Folder of the set for segmentation.
        segmentation_classes: Names of the classes of a mask folder; class 0, class 1, ... by default.
        head: Segmentation head: lraspp, fcn or deeplabv3.
        void_ids: Pixel values of masks that are no class, besides 255.
        on_bad_annotation: error at a box that leaves its image or has no area; skip cuts boxes and drops empty ones.
    """

    tasks: list[str] = field(default_factory=lambda: list(METRICS))
    sizes: list[int] = field(default_factory=lambda: [24, 96])
    detection_data: str = "scenes"
    detection_dir: str | None = None
    detector: str = "faster_rcnn"
    pyramid_channels: int = 32
    segmentation_data: str = "scenes"
    segmentation_dir: str | None = None
    segmentation_classes: list[str] | None = None
    head: str = "lraspp"
    void_ids: list[int] = field(default_factory=list)
    on_bad_annotation: Literal["error", "skip"] = "error"

    def dense(self, task: str) -> DenseTask:
        """Return the images and the model of detection or segmentation."""
        from tl_lightning.study.dense_training import DenseTask  # torch is not needed to read a command line

        if task == "detection":
            options: dict[str, Any] = {"detector": self.detector, "pyramid_channels": self.pyramid_channels}
            return DenseTask(
                "detection",
                self.detection_data,
                self.detection_dir,
                on_bad_annotation=self.on_bad_annotation,
                module_options=options,
            )
        return DenseTask(
            "segmentation",
            self.segmentation_data,
            self.segmentation_dir,
            class_names=tuple(self.segmentation_classes) if self.segmentation_classes else None,
            void_ids=tuple(self.void_ids),
            module_options={"head": self.head},
        )
