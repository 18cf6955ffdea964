"""Digits cropped from composed scenes: the label is what the crop shows, parts share no digit."""

from __future__ import annotations

import numpy as np

from tl_lightning.analysis import linear_probe_accuracy
from tl_lightning.data import TransferDataModule
from tl_lightning.data.scene_digits import load_scene_digits


def pixels(part: str) -> tuple[np.ndarray, np.ndarray]:
    raw = load_scene_digits(None).parts[part]
    return raw.source.images.float().mean(1).flatten(1).numpy(), raw.labels


def test_the_data_module_serves_ten_classes_in_colour() -> None:
    data = TransferDataModule("scene_digits", image_size=32, samples_per_class=5, seed=1)
    data.setup()
    assert data.class_names == [str(digit) for digit in range(10)]
    assert data.train_set.label_counts().tolist() == [5] * 10
    assert data.train_set.shape == (50, 3, 32, 32)
    red, green = data.train_set.images[:, 0].float(), data.train_set.images[:, 1].float()
    assert (red - green).abs().mean() > 5


def test_the_labels_are_what_a_classifier_can_learn() -> None:
    accuracy = linear_probe_accuracy(*pixels("train"), *pixels("test"))
    assert accuracy > 0.5  # guessing gives 0.1
    images, labels = pixels("train")
    shuffled = np.random.default_rng(0).permutation(labels)
    assert linear_probe_accuracy(images, shuffled, *pixels("test")) < 0.25
