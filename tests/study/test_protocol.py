"""The sins of a study, committed on purpose."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from tl_lightning import study
from tl_lightning.errors import UserError
from tl_lightning.study.design import Arm, Trial
from tl_lightning.study.intervals import NOT_MEASURED, Interval
from tl_lightning.study.plateau import reached_plateau
from tl_lightning.study.protocol import SealedTestError
from tl_lightning.study.report import Report

SETTINGS = study.Settings(
    gpus=0, backbone="shufflenet_v2_x0_5", weights="none", data="digits", image_size=32, samples_per_class=3,
    max_val_samples=20, max_test_samples=20, epochs=1, batch_size=10, learning_rates=[0.001, 0.01],
)  # fmt: skip


@pytest.fixture
def trial(tmp_path):
    return Trial("protocol", Arm("arm", {"depth": 0}), 0, tmp_path / "trial")


def test_the_test_set_cannot_be_looked_at_before_the_selection(trial):
    images = study.data_module(SETTINGS, trial.seed)

    def peek(module, datamodule):
        assert datamodule is images
        return {"peeked": len(list(datamodule.test_dataloader()))}

    with pytest.raises(SealedTestError, match="opened once"):
        study.train_and_test(trial, SETTINGS, inspect=peek)


def test_a_callback_cannot_choose_by_the_test_set(trial):
    from lightning.pytorch.callbacks import Callback

    class Peek(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.datamodule.test_dataloader()

    with pytest.raises(SealedTestError):
        study.train_and_test(trial, SETTINGS, callbacks=lambda: [Peek()])


@pytest.mark.parametrize("freezing", [0, "head"])
def test_a_trained_model_is_tested_once(trial, freezing):
    fits = study.fit_classifier(trial, SETTINGS, freezing=freezing)
    record = study.evaluate_selected(trial, fits)
    assert 0 <= record["test_accuracy"] <= 1
    with pytest.raises(SealedTestError, match="second look"):
        study.evaluate_selected(trial, fits)
    with pytest.raises(SealedTestError, match="opened once"):
        fits.best.trainer.test(fits.best.module, fits.best.datamodule, verbose=False)


def test_further_test_sets_have_columns_of_their_own(trial):
    shift = {"fog": {"corruption": "gaussian_noise", "severity": 5}}
    settings = replace(SETTINGS, backbone="efficientnet_lite0", weights="IMAGENET1K_V1")
    record = study.train_and_test(trial, settings, tests=shift)
    assert {"test_accuracy", "fog_accuracy", "fog_loss"} <= set(record)
    assert record["fog_loss"] != record["test_loss"]


def test_an_arm_that_is_tuned_more_is_refused_before_it_runs(trial):
    with pytest.raises(UserError, match="tries 3 learning rates where the others try 2"):
        study.train_and_test(trial, SETTINGS, learning_rates=[0.1, 0.2, 0.3])
    assert not trial.folder.exists()


def frame(**columns):
    rows = {"arm": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "status": "ok", "test_accuracy": [0.5, 0.6, 0.4, 0.5]}
    return pd.DataFrame({**rows, **columns})


@pytest.mark.parametrize(
    "column", ["learning_rates_tried", "data_fingerprint", "test_fingerprint", "transform_fingerprint"]
)
def test_records_of_unequal_protocol_are_not_compared(column):
    same = frame(**{column: ["x", "y", "x", "y"]})
    assert study.compare(same, "a", "b", "test_accuracy").n == 2
    different = frame(**{column: ["x", "x", "x", "y"]})
    with pytest.raises(UserError, match=f"{column} differs at seed 1"):
        study.compare(different, "a", "b", "test_accuracy")


def test_a_plateau_is_an_end_without_improvement():
    rising = [0.1 * step for step in range(8)]
    assert reached_plateau(rising) is False
    assert reached_plateau([*rising, 0.705, 0.70, 0.703]) is True
    assert reached_plateau(rising[:3]) is None


@pytest.mark.parametrize(
    ("columns", "warning"),
    [
        ({"learning_rate_at_edge": [True, False, False, False]}, "**Edge of the grid**: the best learning rate lay"),
        ({"learning_rates_tried": 1}, "**One learning rate** for all arms"),
        ({"learning_rates_tried": 2}, "**Two learning rates** for all arms"),
        ({"learning_rates_tried": [2, 2, 8, 8]}, "**Two learning rates** for 1 of 2 arms"),
        ({"weights": "none", "reached_plateau": [False, True, True, True]}, "**Undertrained**: from random weights"),
    ],
)
def test_the_report_says_what_weakens_it(tmp_path, columns, warning):
    design = study.Study("s", "Does it?", "", arms=lambda _: [], run=lambda *_: {}, report=lambda _: None)
    weak = Report(design, SETTINGS, tmp_path, [], frame(**columns), ["a", "b"]).markdown()
    assert warning in weak
    sound = {"learning_rate_at_edge": False, "reached_plateau": True, "learning_rates_tried": 3, "weights": "none"}
    sound = {name: sound[name] for name in columns}
    assert warning not in Report(design, SETTINGS, tmp_path, [], frame(**sound), ["a", "b"]).markdown()


def test_overlap_of_source_and_target_is_a_banner(tmp_path):
    design = study.Study("s", "Does it?", "", arms=lambda _: [], run=lambda *_: {}, report=lambda _: None)
    for data, weights, shown in (("cifar10", "IMAGENET1K_V1", True), ("digits", "IMAGENET1K_V1", False), ("cifar10", "none", False)):  # noqa: E501  # fmt: skip
        settings = replace(SETTINGS, data=data, weights=weights)
        text = Report(design, settings, tmp_path, [], frame(), ["a", "b"]).markdown()
        assert ("**Overlap**" in text) == shown


def test_an_arm_at_the_share_of_the_most_frequent_class_is_named(tmp_path):
    design = study.Study("s", "Does it?", "", arms=lambda _: [], run=lambda *_: {}, report=lambda _: None)
    values = {"data": "elpv", "one_answer_accuracy": 0.69, "val_accuracy": [0.9, 0.8, 0.69, 0.70]}
    text = Report(design, SETTINGS, tmp_path, [], frame(**values), ["a", "b"]).markdown()
    assert "would be right for 69 % (elpv)" in text
    assert "**No better than one answer for all** in validation: *b*." in text
    better = Report(design, SETTINGS, tmp_path, [], frame(**{**values, "val_accuracy": 0.8}), ["a", "b"]).markdown()
    assert "No better" not in better


@pytest.mark.parametrize(
    ("effect", "text"),
    [
        (Interval(4.2, 1.1, 7.3, 3), "+4.2 [+1.1, +7.3] points"),
        (Interval(2.08, 0.0, math.inf, 3), "+2.08 [+0, no upper bound] points"),
        (Interval(1.44, math.nan, math.nan, 1), "+1.44 points (no interval)"),
        (NOT_MEASURED, "not measured"),
    ],
)
def test_an_effect_is_told_in_words_where_it_has_no_number(effect, text):
    assert effect.described("points") == text
