"""Scores of how well a network will transfer to a target, and distances between its source and the target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tl_lightning.activations.extraction import FrozenPrefix, device_of, global_average
from tl_lightning.analysis import (
    frechet_distance,
    knn_accuracy,
    leep,
    logme,
    minibatch_cka,
    nleep,
    proxy_a_distance,
    regularised_h_score,
)
from tl_lightning.analysis.source_statistics import source_distances
from tl_lightning.backbones.published import published_model
from tl_lightning.data import TransferDataModule
from tl_lightning.errors import UserError
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import build_module
from tl_lightning.tasks import TaskModule

Labels = npt.NDArray[np.int64]
Part = Literal["train", "val"]  # the test set stays sealed


@dataclass(frozen=True)
class Score:
    """A number that should go with the gain of transfer.

    Attributes:
        column: Its column in the results.
        name: Its name in tables and figures.
        sign: 1 where more should mean a larger gain, -1 for distances.
        needs: What must be at hand to measure it.
        predicts: Whether it is known before any training on the target.
    """

    column: str
    name: str
    sign: int
    needs: str
    predicts: bool = True


SCORES = (
    Score("score_frechet_bn", "Frechet distance, BatchNorm statistics", -1, "a network with BatchNorm"),
    Score("score_frechet_images", "Frechet distance, source images", -1, "source images"),
    Score("score_a_distance", "Proxy A-distance", -1, "source images"),
    Score("score_cka_random", "CKA of pretrained and random features", -1, "nothing else"),
    Score("score_cka_tuned", "CKA of pretrained and fine-tuned features", 1, "the fine-tuned network", predicts=False),
    Score("score_logme", "LogME", 1, "nothing else"),
    Score("score_leep", "LEEP", 1, "the head for the source classes"),
    Score("score_nleep", "N-LEEP", 1, "nothing else"),
    Score("score_h", "H-score, regularised", 1, "nothing else"),
    Score("score_knn", "k-NN accuracy above chance", 1, "nothing else"),
)


def measure_scores(
    module: TaskModule,
    images: TransferDataModule,
    settings: Settings,
    seed: int,
    *,
    backbone: str,
    weights: str,
    source: TransferDataModule | None = None,
) -> dict[str, float]:
    """Return all scores that can be had from a pretrained network and the training images of a target.

    Only the labels of the training images are used, and of the validation images for k-NN.

    Args:
        module: A module whose backbone is the pretrained one, but for its head.
        images: The target.
        settings: Those of the study.
        seed: Fixes the random network and whatever else is drawn.
        backbone: Name of the backbone.
        weights: Its weights; those with a published head give LEEP.
        source: Images of the source, where they are at hand.
    """
    features, held = penultimates(module, images, ("train", "val"))
    labels, held_labels = images.train_set.labels.numpy(), images.val_set.labels.numpy()
    random = random_module(images, settings, seed, backbone)
    return {
        **_to_source_statistics(module, images),
        **(_to_source_images(module, features, source, seed) if source is not None else {}),
        "score_cka_random": minibatch_cka(features, penultimate(random, images, "train"), seed=seed),
        "score_logme": logme(features, labels),
        **_leep(module, images, labels, backbone, weights),
        "score_nleep": nleep(features, labels, seed=seed),
        "score_h": regularised_h_score(features, labels),
        "score_knn": _knn_above_chance(features, labels, held, held_labels, images.num_classes),
    }


def kept_features(before: TaskModule, after: TaskModule, images: TransferDataModule) -> float:
    """Return the CKA of the features before and after training, on the validation images."""
    return minibatch_cka(penultimate(before, images, "val"), penultimate(after, images, "val"))


def penultimate(module: TaskModule, images: TransferDataModule, part: Part) -> Tensor:
    """Return what enters the head, averaged over positions, [N, d], of all images of a part, in evaluation mode."""
    return penultimates(module, images, [part])[0]


def penultimates(module: TaskModule, images: TransferDataModule, parts: Sequence[Part]) -> list[Tensor]:
    """Return the same for several parts; the network is prepared once."""
    stages = module.stages
    prefix = stages.split(stages.boundary_before(len(stages) - 1))[0]
    frozen = FrozenPrefix(prefix, device_of(module), module.normalise)
    return [torch.cat([global_average(frozen(b)[0]).cpu() for b in batches(images, part)]) for part in parts]


def batches(images: TransferDataModule, part: Part) -> Iterator[Tensor]:
    """Yield the images of a part as a module sees them before normalisation, float [B, 3, S, S]."""
    image_set = images.train_set if part == "train" else images.val_set
    for positions in torch.arange(len(image_set)).split(256):
        yield images.resize(image_set.gather(positions))


def random_module(images: TransferDataModule, settings: Settings, seed: int, backbone: str) -> TaskModule:
    """Return a network of random weights, its BatchNorm statistics those of the target's training images.

    Without them its features would shrink or grow from layer to layer, for no fault of the weights.
    """
    module = build_module(seed, backbone, "none", images.num_classes, 1e-3, settings, {})
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.momentum = None  # the plain mean over all batches
    module.train()
    with torch.no_grad():
        for batch in batches(images, "train"):
            if len(batch) > 1:
                module(batch)
    return module.eval()


def _to_source_statistics(module: TaskModule, images: TransferDataModule) -> dict[str, float]:
    try:
        by_layer = source_distances(module.backbone, batches(images, "train"), module.normalise)
    except UserError:  # a network without BatchNorm
        return {}
    return {"score_frechet_bn": float(np.mean(list(by_layer.values())))}


def _to_source_images(module: TaskModule, features: Tensor, source: TransferDataModule, seed: int) -> dict[str, float]:
    """Return the distances to as many source images as there are target images."""
    found = penultimate(module, source, "train")
    rows = np.random.default_rng(seed).permutation(len(found))[: len(features)]
    return {
        "score_frechet_images": frechet_distance(found[rows], features[: len(rows)]),
        "score_a_distance": proxy_a_distance(found[rows], features, seed=seed),
    }


def _knn_above_chance(features: Tensor, labels: Labels, held: Tensor, held_labels: Labels, classes: int) -> float:
    """Return the mean over the classes of the accuracy of k nearest neighbours, 0 for guessing and 1 for no error."""
    shares = [
        knn_accuracy(features, labels, held[held_labels == c], held_labels[held_labels == c])
        for c in np.unique(held_labels)
    ]
    return (float(np.mean(shares)) - 1 / classes) / (1 - 1 / classes)


def _leep(
    module: TaskModule, images: TransferDataModule, labels: Labels, backbone: str, weights: str
) -> dict[str, float]:
    model = published_model(backbone, weights)
    if model is None:
        return {}
    device = device_of(module)
    with torch.no_grad():
        rows = [model.to(device)(module.normalise(b.to(device))).softmax(1).cpu() for b in batches(images, "train")]
    return {"score_leep": leep(torch.cat(rows).double(), labels)}
