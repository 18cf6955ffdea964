"""What a backbone wants to see: normalisation, the image size it was trained at, the sizes it can take."""

from __future__ import annotations

from dataclasses import dataclass

import torchvision
from torchvision.models import get_model_weights

import tl_lightning.backbones.efficientnet_lite  # registers its models
from tl_lightning.errors import UserError, unknown_name

NONE = "none"

_FIXED_SIZE = ("vit_", "maxvit_")  # position embeddings for one size
_UNTRAINED_SIZE = 224  # the size at which torchvision builds these without weights
# torchvision declares the training size here; these are the sizes at which the forward pass first succeeds.
_SMALLEST = {"swin_": 4, "efficientnet_v2_": 1}
_SMALLEST_WITH_AUXILIARY = {"inception_v3": 299}


@dataclass(frozen=True)
class InputSpec:
    """The input that a backbone expects.

    Attributes:
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
        image_size: Side of the square images of the training (crop size), in pixels.
        min_size: The smallest side that the model can take.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    min_size: int


def list_backbones() -> list[str]:
    """Return the names of all classification models of torchvision, and of EfficientNet-Lite0/1/2."""
    own = torchvision.models.list_models(tl_lightning.backbones)
    return sorted([*torchvision.models.list_models(torchvision.models), *own])


def check_name(name: str) -> str:
    """Return the name if it is one of a backbone.

    Raises:
        UserError: There is no such backbone; the nearest names are suggested.
    """
    known = list_backbones()
    if name not in known:
        raise unknown_name("backbone", name, known)
    return name


def published_weights(name: str, weights: str) -> torchvision.models.WeightsEnum | None:
    """Return the weights of that name that are published for a backbone, or None."""
    enum = get_model_weights(check_name(name))
    return enum.__members__.get(weights.removeprefix(f"{enum.__name__}."))


def input_spec(name: str, weights: str = NONE) -> InputSpec:
    """Return the input that a backbone expects.

    Normalisation belongs to the architecture's published weights, also where it starts from none or from a file: an
    arm from scratch and a checkpoint of one's own then see the same input as the pretrained arm. It is ImageNet's mean
    and standard deviation for all of torchvision but EfficientNetV2-L, which like EfficientNet-Lite maps to [-1, 1].

    Args:
        name: Name of a backbone.
        weights: As for ``create_backbone``.

    Raises:
        UserError: There is no such backbone.
    """
    member = published_weights(name, weights)
    preset = (member or get_model_weights(name)["DEFAULT"]).transforms()
    size = preset.crop_size[0]
    if name.startswith(_FIXED_SIZE):
        size = size if member else _UNTRAINED_SIZE
        smallest = size
    else:
        declared = get_model_weights(name)["DEFAULT"].meta["min_size"][0]
        smallest = next((s for prefix, s in _SMALLEST.items() if name.startswith(prefix)), declared)
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (preset.mean, preset.std))
    return InputSpec(mean, std, size, smallest)


def check_image_size(name: str, image_size: int, weights: str = NONE, *, aux_logits: bool = False) -> None:
    """Check that a backbone can take square images of a size.

    Args:
        name: Name of a backbone.
        image_size: Side in pixels.
        weights: As for ``create_backbone``; a few vision transformers have weights for larger images.
        aux_logits: Whether auxiliary heads are to be trained, too; Inception's need large images.

    Raises:
        UserError: There is no such backbone, or it cannot take that size.
    """
    spec = input_spec(name, weights)
    if name.startswith(_FIXED_SIZE) and image_size != spec.image_size:
        raise UserError(f"{name} takes images of {spec.image_size} pixels only, not {image_size}")
    smallest = spec.min_size
    if aux_logits:
        smallest = max(smallest, _SMALLEST_WITH_AUXILIARY.get(name, 0))
    if image_size < smallest:
        raise UserError(f"{name} needs images of at least {smallest} pixels, not {image_size}")
