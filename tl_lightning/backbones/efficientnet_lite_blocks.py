"""The architecture of EfficientNet-Lite, of torchvision's building blocks.

Tan and Le, EfficientNet, ICML 2019, in the "lite" variant of the TensorFlow TPU repository: ReLU6 in place of SiLU, no
squeeze-and-excitation, a stem and a last layer of fixed width, and first and last stages of fixed depth.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation, StochasticDepth

# Expansion, kernel, stride, output channels, layers of each stage (EfficientNet, table 1).
STAGES = [
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
]
_STEM_CHANNELS = 32
_LAST_CHANNELS = 1280

# The published models were trained with momentum 0.01. It is torchvision's 0.1 here (as in its EfficientNet-B0 to B4):
# with 0.01 the running statistics lag hundreds of steps behind the weights, and a short fine-tuning is evaluated with
# statistics of the pretraining.
_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.1)
# Not in place as in torchvision: the backward pass of ReLU6 needs its input, so that autograd would copy it.
_layer = partial(Conv2dNormActivation, norm_layer=_norm, activation_layer=nn.ReLU6, inplace=False)


class SamePadding(nn.Module):
    """Pads as TensorFlow's ``SAME`` does before a convolution of stride 2: one pixel less at top and left if even.

    Symmetric padding moves every stage by half a pixel: on the 20 ImageNet images that come with foolbox, the
    cross-entropy of the weights of Lite0/1/2 is 0.58, 0.74, 0.60 with this padding and 0.68, 0.82, 0.61 with that one.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.after = kernel_size // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad images ``[B, C, H, W]``."""
        top, left = self.after - 1 + x.shape[-2] % 2, self.after - 1 + x.shape[-1] % 2
        return nn.functional.pad(x, [left, self.after, top, self.after])


def _same_padding(kernel: int, stride: int) -> tuple[nn.Module, int | None]:
    """Return the layer that pads before a convolution and the padding that is left to the convolution itself."""
    return (SamePadding(kernel), 0) if stride == 2 else (nn.Identity(), None)


class LiteBlock(nn.Module):
    """Inverted residual block without squeeze-and-excitation: expand, depthwise, project, and add when shapes agree."""

    def __init__(
        self, expansion: int, kernel: int, stride: int, channels: int, out_channels: int, stochastic_depth: float
    ) -> None:
        super().__init__()
        wide = channels * expansion
        self.residual = stride == 1 and channels == out_channels
        self.expand = _layer(channels, wide, kernel_size=1) if expansion != 1 else nn.Identity()
        self.pad, padding = _same_padding(kernel, stride)
        self.depthwise = _layer(wide, wide, kernel, stride, padding=padding, groups=wide)
        self.project = _layer(wide, out_channels, kernel_size=1, activation_layer=None)
        self.stochastic_depth = StochasticDepth(stochastic_depth, "row")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, channels, H, W]`` to ``[B, out_channels, H / stride, W / stride]``."""
        out = self.project(self.depthwise(self.pad(self.expand(x))))
        return self.stochastic_depth(out) + x if self.residual else out


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite, laid out as torchvision's EfficientNet: ``features``, ``avgpool``, ``classifier``.

    Args:
        width: Factor of the channels of every stage but the stem and the last layer.
        depth: Factor of the layers of every stage but the first and the last.
        dropout: Probability of the dropout before the classifier.
        stochastic_depth_prob: Probability to skip the deepest block; it falls linearly to 0 at the first.
        num_classes: Number of outputs.
    """

    def __init__(
        self,
        width: float,
        depth: float,
        dropout: float,
        stochastic_depth_prob: float = 0.2,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        pad, padding = _same_padding(kernel=3, stride=2)
        stem = nn.Sequential()
        stem.add_module("pad", pad)
        stem.add_module("conv", _layer(3, _STEM_CHANNELS, 3, 2, padding=padding))
        stages = scaled_stages(width, depth)
        total, done = sum(len(stage) for stage in stages), 0
        features: list[nn.Module] = [stem]
        for stage in stages:
            rates = [stochastic_depth_prob * (done + i) / total for i in range(len(stage))]
            features.append(nn.Sequential(*(LiteBlock(*block, r) for block, r in zip(stage, rates, strict=True))))
            done += len(stage)
        features.append(_layer(stages[-1][-1][-1], _LAST_CHANNELS, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout, inplace=True), nn.Linear(_LAST_CHANNELS, num_classes))
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as torchvision's EfficientNet; the norm layers start as the identity by themselves."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(module.out_features)
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images ``[B, 3, H, W]`` to logits ``[B, num_classes]``."""
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def scaled_stages(width: float, depth: float) -> list[list[tuple[int, int, int, int, int]]]:
    """Return, for every block of every stage: expansion, kernel, stride, input and output channels."""
    channels = _STEM_CHANNELS
    stages = []
    for k, (expansion, kernel, stride, out, layers) in enumerate(STAGES):
        scaled = layers if k in (0, len(STAGES) - 1) else math.ceil(layers * depth)
        wide = _round_channels(out * width)
        inputs = [channels] + [wide] * (scaled - 1)
        strides = [stride] + [1] * (scaled - 1)
        stages.append([(expansion, kernel, s, i, wide) for s, i in zip(strides, inputs, strict=True)])
        channels = wide
    return stages


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, but never down by more than a tenth (as every EfficientNet does)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
