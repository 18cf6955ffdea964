"""A study's trials end the same with cached activations, with a folded prefix and with neither."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tl_lightning import study
from tl_lightning.callbacks import FoldedPrefix
from tl_lightning.study import Arm, Trial, training

SETTINGS = study.Settings(
    gpus=0, backbone="efficientnet_lite0", weights="IMAGENET1K_V1", data="digits", image_size=48, samples_per_class=5,
    max_val_samples=40, max_test_samples=60, epochs=2, batch_size=10, learning_rates=[0.00001, 0.00003],
)  # fmt: skip


def record(tmp_path, name, freezing, **changed):
    trial = Trial("cache", Arm(name, {}), 0, tmp_path / name)
    return study.train_and_test(trial, replace(SETTINGS, **changed), freezing=freezing)


@pytest.mark.parametrize("freezing", ["head", 4, {0: "head", 1: "none"}])
def test_cache_and_folding_change_no_result(tmp_path, monkeypatch, freezing):
    with_cache = record(tmp_path, "cached", freezing, cache_size=1.0)
    folded = record(tmp_path, "folded", freezing, cache_size=0.0)
    monkeypatch.setattr(training, "_folded", lambda *_: [])
    plain = record(tmp_path, "plain", freezing, cache_size=0.0)
    for other in (with_cache, folded):
        assert other["learning_rate"] == plain["learning_rate"]
        assert other["test_accuracy"] == pytest.approx(plain["test_accuracy"], abs=0.005)
        assert other["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-3)
        assert other["data_fingerprint"] == plain["data_fingerprint"]


@pytest.mark.parametrize(
    ("freezing", "bn", "folds"), [(0, "eval", 0), ("none", "eval", 0), ("head", "eval", 1), (3, "affine_only", 0)]
)
def test_only_what_is_frozen_for_good_is_folded(freezing, bn, folds):
    assert [type(callback) for callback in training._folded(freezing, bn)] == [FoldedPrefix] * folds
