"""The validation images that a study of explanations looks at: a sample, a panel, those that a model is sure of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tl_lightning.data import TransferDataModule


@dataclass(frozen=True)
class LabelledImages:
    """Images as a module's forward takes them.

    Attributes:
        images: float32 [N, 3, S, S] in [0, 1].
        labels: int64 [N].
        class_names: Names of the classes.
    """

    images: Tensor
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]

    def some(self, positions: npt.ArrayLike) -> LabelledImages:
        """Return those at the positions."""
        chosen = np.asarray(positions, dtype=np.int64)
        return LabelledImages(self.images[torch.from_numpy(chosen)], self.labels[chosen], self.class_names)


def sample_images(images: TransferDataModule, count: int) -> LabelledImages:
    """Return so many validation images, evenly spread over the set, or all where there are fewer."""
    places = torch.linspace(0, len(images.val_set) - 1, min(count, len(images.val_set))).round().long()
    return _at(images, places)


def panel_images(images: TransferDataModule, count: int) -> LabelledImages:
    """Return the first validation images of each class in turn: not chosen for what they show."""
    labels = images.val_set.labels.numpy()
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return _at(images, torch.from_numpy(np.lexsort((labels, turn))[:count]))


def surer_half(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the positions of the images that are classified rightly, of each class the surer half (rounded up).

    Args:
        probabilities: [N, C] of the model.
        labels: True classes [N].
    """
    right, sure = probabilities.argmax(1) == labels, probabilities.max(1)
    chosen: list[int] = []
    for label in np.unique(labels):
        places = np.flatnonzero(right & (labels == label))
        places = places[np.argsort(-sure[places], kind="stable")]
        chosen += places[: (len(places) + 1) // 2].tolist()
    return np.array(sorted(chosen), dtype=np.int64)


def _at(images: TransferDataModule, places: Tensor) -> LabelledImages:
    part = images.val_set
    return LabelledImages(images.resize(part.gather(places)), part.labels[places].numpy(), part.class_names)
