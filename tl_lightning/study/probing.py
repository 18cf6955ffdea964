"""What features are worth before any training: k nearest neighbours and the linear probe."""

from __future__ import annotations

import time
from typing import Any

from tl_lightning.analysis.probes import knn_accuracy, linear_probe_accuracy
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import build_module, data_module
from tl_lightning.study.transfer_scores import penultimate, random_module


def probe_features(
    settings: Settings, seed: int, *, backbone: str, weights: str, samples_per_class: int | None = None
) -> dict[str, Any]:
    """Judge the features of a network as it is, without training it.

    The features are what the head gets, averaged over the image. They are judged on all validation images: nothing
    is chosen on these (the probe's penalty is chosen on the training images), and the test set stays sealed.

    Args:
        settings: What all arms share.
        seed: Fixes the images and the random weights.
        backbone: The network.
        weights: Its weights; ``none`` for random ones, whose BatchNorm takes the statistics of the training images.
        samples_per_class: Labelled images of each class; all of them by default.

    Returns:
        The values of a trial's record, ``val_knn_accuracy`` and ``val_probe_accuracy`` among them.
    """
    images = data_module(settings, seed, samples_per_class=samples_per_class, val_samples=None)
    if weights == "none":
        module = random_module(images, settings, seed, backbone)
    else:
        module = build_module(seed, backbone, weights, images.num_classes, 1e-3, settings, {}).eval()
    start = time.perf_counter()
    features, held = penultimate(module, images, "train"), penultimate(module, images, "val")
    seconds = time.perf_counter() - start
    labels, held_labels = images.train_set.labels, images.val_set.labels
    return {
        "backbone": backbone,
        "weights": weights,
        "epochs": 0,
        "train_images": len(images.train_set),
        "val_images": len(images.val_set),
        "val_knn_accuracy": knn_accuracy(features, labels, held, held_labels),
        "val_probe_accuracy": linear_probe_accuracy(features, labels, held, held_labels, seed=seed),
        "feature_images_per_second": (len(features) + len(held)) / seconds,
        "total_parameters": sum(parameter.numel() for parameter in module.backbone.parameters()),
        "data_fingerprint": images.fingerprint("train"),
        "val_fingerprint": images.fingerprint("val"),
        "transform_fingerprint": images.transform_fingerprint(),
    }
