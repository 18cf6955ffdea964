"""torchvision's segmentation heads on the maps of any backbone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.models.segmentation.lraspp import LRASPPHead

from tl_lightning.backbones.pyramid import FeatureBackbone

_ASPP_REACH = 96  # pixels: the smallest of DeepLabV3's rates is 12 at stride 8 and 6 at stride 16
_LRASPP_CHANNELS = 128

Maps = dict[int, Tensor]


class DeepestMapHead(nn.Module):
    """Runs a head on the deepest map alone.

    Args:
        head: Maps [B, C, h, w] to [B, classes, h, w].
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: Maps) -> Tensor:
        """Return logits [B, classes, h, w] at the stride of the deepest map."""
        return self.head(maps[max(maps)])


class TwoMapsHead(nn.Module):
    """Runs a head on the shallowest and the deepest map.

    Args:
        head: Maps a dict with ``low`` and ``high`` to [B, classes, h, w].
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: Maps) -> Tensor:
        """Return logits [B, classes, h, w] at the stride of the shallowest map."""
        return self.head({"low": maps[min(maps)], "high": maps[max(maps)]})


def _deeplabv3(backbone: FeatureBackbone, classes: int) -> nn.Module:
    rate = max(1, _ASPP_REACH // backbone.strides[-1])
    return DeepestMapHead(DeepLabHead(backbone.channels[-1], classes, (rate, 2 * rate, 3 * rate)))


def _fcn(backbone: FeatureBackbone, classes: int) -> nn.Module:
    return DeepestMapHead(FCNHead(backbone.channels[-1], classes))


def _lraspp(backbone: FeatureBackbone, classes: int) -> nn.Module:
    return TwoMapsHead(LRASPPHead(backbone.channels[0], backbone.channels[-1], classes, _LRASPP_CHANNELS))


SEGMENTATION_HEADS: dict[str, Callable[[FeatureBackbone, int], nn.Module]] = {
    "deeplabv3": _deeplabv3,
    "fcn": _fcn,
    "lraspp": _lraspp,
}
