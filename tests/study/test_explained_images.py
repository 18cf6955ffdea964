from __future__ import annotations

import numpy as np
import torch

from tl_lightning.data import TransferDataModule
from tl_lightning.study.explained_images import panel_images, sample_images, surer_half


def digits() -> TransferDataModule:
    module = TransferDataModule("digits", image_size=16, samples_per_class=4, val_samples=50, test_samples=20)
    module.setup()
    return module


def test_a_panel_takes_the_classes_in_turn_and_the_first_image_of_each():
    images = digits()
    shown = panel_images(images, 13)
    assert shown.labels.tolist() == [*range(10), 0, 1, 2]
    first_zero = int((images.val_set.labels == 0).nonzero()[0])
    assert torch.equal(shown.images[0], images.resize(images.val_set.gather(torch.tensor([first_zero])))[0])
    assert shown.images.shape == (13, 3, 16, 16)


def test_a_sample_is_spread_over_the_set_and_never_larger_than_it():
    images = digits()
    assert len(sample_images(images, 20).labels) == 20
    everything = sample_images(images, 500)
    assert everything.labels.tolist() == images.val_set.labels.tolist()
    some = everything.some([3, 1])
    assert torch.equal(some.images, everything.images[[3, 1]])
    assert some.labels.tolist() == everything.labels[[3, 1]].tolist()


def test_the_surer_half_of_what_is_classified_rightly():
    labels = np.array([0, 0, 0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.6, 0.4]], dtype=np.float32)
    assert surer_half(probabilities, labels).tolist() == [0, 2, 4]
    assert surer_half(probabilities[:, ::-1], labels).tolist() == [3, 5]
    assert surer_half(probabilities[[3]], labels[:1]).tolist() == []
