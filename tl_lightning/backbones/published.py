"""A published model as it is, with the head for its own classes."""

from __future__ import annotations

from torch import nn
from torchvision.models import get_model

from tl_lightning.backbones.inputs import published_weights


def published_model(name: str, weights: str) -> nn.Module | None:
    """Return a model with all its published weights, the head among them, in evaluation mode.

    What ``create_backbone`` leaves out: the classifier of the source classes, which says how a source model sees the
    images of another task.

    Args:
        name: One of ``list_backbones()``.
        weights: Name of published weights, such as ``"IMAGENET1K_V1"``.

    Returns:
        The model, or None where the weights are not published ones (``"none"``, a file).
    """
    member = published_weights(name, weights)
    return None if member is None else get_model(name, weights=member, progress=False).eval()
