"""torchvision's detectors on any backbone: Faster R-CNN and RetinaNet with a feature pyramid, and SSDLite."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation

from tl_lightning.backbones.pyramid import FeatureBackbone

_MOST_DETECTIONS = 100  # COCO's metric counts the best 100 of an image
_ROI_SIZE = 7
_SSD_EXTRAS = (512, 256, 256)
_ssd_norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)


@dataclass(frozen=True)
class HeadOptions:
    """What the heads are made with.

    Args:
        num_classes: Object classes, the background not counted.
        channels: Channels of the feature pyramid.
        anchor_scale: Side of the anchors in strides of their map.
    """

    num_classes: int
    channels: int
    anchor_scale: float


@dataclass(frozen=True)
class Detector:
    """A detector by name.

    Args:
        strides: Strides of the backbone's maps that it looks at.
        build: Makes it.
    """

    strides: tuple[int, ...]
    build: Callable[[FeatureBackbone, HeadOptions], nn.Module]


class BackboneWithNeck(nn.Module):
    """What a detector takes for its backbone: the maps of the task's backbone, passed through a neck.

    The backbone belongs to the task, so it is kept out of the module tree here: registered twice, every parameter
    would be owned twice.

    Args:
        backbone: The task's backbone.
        neck: Maps an ordered dict of feature maps to another one.
        out_channels: Channels of the neck's maps.
    """

    def __init__(self, backbone: FeatureBackbone, neck: nn.Module, out_channels: int) -> None:
        super().__init__()
        self._backbone = (backbone,)
        self.neck = neck
        self.out_channels = out_channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the maps of normalised images [B, 3, H, W]."""
        maps = self._backbone[0].pyramid(image).values()
        return self.neck(OrderedDict((str(i), found) for i, found in enumerate(maps)))


class SameSizeImages(nn.Module):
    """Stands in for torchvision's ``GeneralizedRCNNTransform``: images are normalised and of one size already.

    Args:
        divisor: Images are padded on the right and at the bottom to a multiple of this.
    """

    def __init__(self, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, images: Tensor, targets: Any = None) -> tuple[ImageList, Any]:
        """Return images [B, 3, H, W] as torchvision's heads want them, and the targets as they are."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.divisor, 0, -height % self.divisor))
        return ImageList(padded, [(height, width)] * len(images)), targets

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """Return the detections as they are: in pixels of the images given."""
        return result


class ExtraMaps(nn.Module):
    """Adds ever smaller maps behind the deepest one, by separable convolutions of stride 2 (SSDLite, section 6.2).

    Args:
        in_channels: Channels of the deepest map.
        channels: Channels of every map added.
    """

    def __init__(self, in_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for out_channels in channels:
            self.blocks.append(_extra_block(in_channels, out_channels))
            in_channels = out_channels

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the maps given and those added, shallow to deep."""
        values = list(maps.values())
        for block in self.blocks:
            values.append(block(values[-1]))
        return OrderedDict((str(i), value) for i, value in enumerate(values))


def _extra_block(in_channels: int, out_channels: int) -> nn.Sequential:
    layer = partial(Conv2dNormActivation, norm_layer=_ssd_norm, activation_layer=nn.ReLU6)
    narrow = out_channels // 2
    block = nn.Sequential(
        layer(in_channels, narrow, kernel_size=1),
        layer(narrow, narrow, kernel_size=3, stride=2, groups=narrow),
        layer(narrow, out_channels, kernel_size=1),
    )
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.03)
    return block


def _faster_rcnn(backbone: FeatureBackbone, options: HeadOptions) -> nn.Module:
    """Ren et al. 2015 with the pyramid of Lin et al. 2017 (arXiv 1612.03144), sampling less for smaller images."""
    neck = FeaturePyramidNetwork(list(backbone.channels), options.channels, LastLevelMaxPool())
    strides = (*backbone.strides, 2 * backbone.strides[-1])
    pool = MultiScaleRoIAlign(
        [str(i) for i in range(len(backbone.strides))],
        output_size=_ROI_SIZE,
        sampling_ratio=2,
        canonical_scale=round(224 * options.anchor_scale / 8),  # the paper's, whose anchors are 8 strides wide
    )
    hidden = 4 * options.channels
    return FasterRCNN(
        BackboneWithNeck(backbone, neck, options.channels),
        rpn_anchor_generator=_anchors(strides, options, octaves=1),
        rpn_pre_nms_top_n_train=1000,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_train=500,
        rpn_post_nms_top_n_test=250,
        box_roi_pool=pool,
        box_head=TwoMLPHead(options.channels * _ROI_SIZE**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, options.num_classes + 1),
        box_batch_size_per_image=128,
        box_detections_per_img=_MOST_DETECTIONS,
    )


def _retinanet(backbone: FeatureBackbone, options: HeadOptions) -> nn.Module:
    """Lin et al. 2017 (arXiv 1708.02002), with group normalisation in the heads, as torchvision's second version."""
    neck = FeaturePyramidNetwork(
        list(backbone.channels), options.channels, LastLevelP6P7(options.channels, options.channels)
    )
    anchors = _anchors((*backbone.strides, 2 * backbone.strides[-1], 4 * backbone.strides[-1]), options, octaves=3)
    head = RetinaNetHead(
        options.channels,
        anchors.num_anchors_per_location()[0],
        options.num_classes + 1,
        norm_layer=partial(nn.GroupNorm, 32),
    )
    return RetinaNet(
        BackboneWithNeck(backbone, neck, options.channels),
        options.num_classes + 1,
        anchor_generator=anchors,
        head=head,
        detections_per_img=_MOST_DETECTIONS,
    )


def _ssdlite(backbone: FeatureBackbone, options: HeadOptions) -> nn.Module:
    """SSD (arXiv 1512.02325) with the separable heads of MobileNetV2 (arXiv 1801.04381)."""
    neck = ExtraMaps(backbone.channels[-1], _SSD_EXTRAS)
    channels = [*backbone.channels, *_SSD_EXTRAS]
    boxes = DefaultBoxGenerator([[2, 3]] * len(channels), min_ratio=0.1, max_ratio=0.9)
    head = SSDLiteHead(channels, boxes.num_anchors_per_location(), options.num_classes + 1, _ssd_norm)
    return SSD(
        BackboneWithNeck(backbone, neck, channels[-1]),
        boxes,
        (320, 320),  # for the transform alone, which is replaced
        options.num_classes + 1,
        head=head,
        detections_per_img=_MOST_DETECTIONS,
    )


def _anchors(strides: Sequence[int], options: HeadOptions, octaves: int) -> AnchorGenerator:
    sides = tuple(
        tuple(round(stride * options.anchor_scale * math.pow(2, k / octaves)) for k in range(octaves))
        for stride in strides
    )
    return AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides))


DETECTORS: dict[str, Detector] = {
    "faster_rcnn": Detector((4, 8, 16, 32), _faster_rcnn),
    "retinanet": Detector((8, 16, 32), _retinanet),
    "ssdlite": Detector((8, 16, 32), _ssdlite),
}


def build_detector(name: str, backbone: FeatureBackbone, options: HeadOptions) -> nn.Module:
    """Return torchvision's detector of that name on a backbone; it takes normalised images [B, 3, H, W]."""
    detector = DETECTORS[name].build(backbone, options)
    detector.transform = SameSizeImages(backbone.strides[-1])
    return detector
