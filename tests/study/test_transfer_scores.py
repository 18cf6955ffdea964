"""Scores of a real pretrained network on real digits: known answers, and nothing but the training part is looked at."""

from __future__ import annotations

import pytest
import torch

from tl_lightning.analysis import leep
from tl_lightning.backbones.published import published_model
from tl_lightning.study.protocol import seal
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import build_module, data_module
from tl_lightning.study.transfer_scores import batches, kept_features, measure_scores, penultimate, random_module

LITE = ("efficientnet_lite0", "IMAGENET1K_V1")
SETTINGS = Settings(data="digits", image_size=32, samples_per_class=4, max_val_samples=20, max_test_samples=10, gpus=0)


@pytest.fixture(scope="module")
def images():
    made = data_module(SETTINGS, 0)
    seal(made)
    return made


@pytest.fixture(scope="module")
def pretrained(images):
    return build_module(0, *LITE, images.num_classes, 1e-3, SETTINGS, {}).eval()


@pytest.fixture(scope="module")
def scores(images, pretrained):
    source = data_module(SETTINGS, 0, corruption="invert", corrupt_parts=("train", "val", "test"))
    return measure_scores(pretrained, images, SETTINGS, 0, backbone=LITE[0], weights=LITE[1], source=source)


def test_the_features_are_what_enters_the_head(images, pretrained) -> None:
    features = penultimate(pretrained, images, "train")
    assert features.shape == (40, 1280)
    with torch.no_grad():
        logits = pretrained(next(batches(images, "train")))
    head = pretrained.backbone.classifier[-1]
    assert torch.allclose(features @ head.weight.T + head.bias, logits, atol=1e-3)


def test_leep_is_that_of_the_published_head(images, pretrained, scores) -> None:
    model = published_model(*LITE)
    assert model is not None
    with torch.no_grad():
        output = model(pretrained.normalise(next(batches(images, "train"))))
    assert output.shape == (40, 1000)
    assert scores["score_leep"] == pytest.approx(leep(output.double().softmax(1), images.train_set.labels), abs=1e-4)
    assert -2.3026 <= scores["score_leep"] < 0  # never below the entropy of ten equal classes


def test_weights_without_a_published_head_have_no_leep(images, pretrained) -> None:
    found = measure_scores(pretrained, images, SETTINGS, 0, backbone=LITE[0], weights="none")
    assert "score_leep" not in found
    assert "score_a_distance" not in found
    assert published_model(LITE[0], "none") is None


def test_inverted_digits_are_told_from_digits(scores) -> None:
    assert scores["score_a_distance"] > 1.5
    assert scores["score_frechet_images"] > 0
    assert scores["score_knn"] > 0.2  # 0 for guessing


def test_the_source_in_place_of_the_target_is_near(images, pretrained, scores) -> None:
    same = measure_scores(pretrained, images, SETTINGS, 0, backbone=LITE[0], weights=LITE[1], source=images)
    assert same["score_frechet_images"] < 0.01 * scores["score_frechet_images"]
    assert same["score_a_distance"] < scores["score_a_distance"]


def test_kept_features(images, pretrained) -> None:
    assert kept_features(pretrained, pretrained, images) == pytest.approx(1, abs=1e-5)
    assert kept_features(pretrained, random_module(images, SETTINGS, 0, LITE[0]), images) < 0.9


def test_a_random_network_keeps_its_features_in_size(images) -> None:
    module = random_module(images, SETTINGS, 0, LITE[0])
    assert not module.training
    assert 0.05 < float(penultimate(module, images, "train").std()) < 5
