from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tl_lightning.study import Arm, Settings, Trial, data_module, fit_classifier, fit_twin
from tl_lightning.study.protocol import SealedTestError
from tl_lightning.study.twins import in_other_order

TINY = Settings(
    backbone="shufflenet_v2_x0_5",
    weights="none",
    data="digits",
    samples_per_class=4,
    max_val_samples=20,
    max_test_samples=20,
    image_size=32,
    epochs=1,
    batch_size=8,
    learning_rates=[0.01, 0.02],
    gpus=0,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    trial = Trial("study", Arm("arm"), 1, Path(tmp_path_factory.mktemp("trial")))
    fits = fit_classifier(trial, TINY)
    return fits, fit_twin(trial, TINY, 0.02, weights="none"), trial


def test_a_twin_starts_and_ends_elsewhere_at_the_rate_it_was_given(pair):
    fits, twin, trial = pair
    assert [candidate.lr for candidate in twin.candidates] == [0.02]
    same = next(candidate for candidate in fits.candidates if candidate.lr == 0.02)
    weights = [c.module.state_dict() for c in (same, twin.best)]
    assert not torch.equal(weights[0]["backbone.conv1.0.weight"], weights[1]["backbone.conv1.0.weight"])
    assert {entry.name for entry in trial.folder.iterdir() if entry.is_dir()} >= {"lr=0.02", "twin-lr=0.02"}


def test_a_twin_trains_on_the_same_images_in_another_order():
    images = data_module(TINY, 1)
    other = in_other_order(images, 5)
    first, second = (torch.cat([b["index"] for b in data.train_dataloader()]) for data in (images, other))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    assert other.train_set is images.train_set
    assert other.fingerprint("train") == images.fingerprint("train")
    assert images.seed == 1


def test_a_twin_cannot_be_tested(pair):
    twin = pair[1]
    with pytest.raises(SealedTestError):
        twin.images.test_dataloader()
    with pytest.raises(SealedTestError):
        in_other_order(twin.images, 3).test_dataloader()
