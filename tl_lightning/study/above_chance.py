"""Accuracy above chance: comparable between targets of unlike numbers of classes and unlike mixtures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tl_lightning.errors import UserError
from tl_lightning.study.design import Trial
from tl_lightning.study.fitting import evaluate_selected
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import fit_classifier
from tl_lightning.tasks import TaskModule

METRIC = "test_above_chance"


def above_chance(confusion: npt.ArrayLike) -> float:
    """Return the mean recall of the classes, as 0 for guessing and 1 for no error.

    ``(r - 1 / C) / (1 - 1 / C)`` with the mean recall r of C classes (balanced accuracy, adjusted for chance). A model
    that says the same class whatever it sees gets 0, also where most images are of that class.

    Args:
        confusion: Counts [C, C], true classes by row; classes without an image are left out of the mean.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    images = counts.sum(1)
    if len(counts) < 2 or not images.any():
        raise UserError("accuracy above chance needs two classes and an image")
    recall = float((np.diag(counts)[images > 0] / images[images > 0]).mean())
    return (recall - 1 / len(counts)) / (1 - 1 / len(counts))


def train_and_test_above_chance(
    trial: Trial,
    settings: Settings,
    *,
    inspect: Callable[[TaskModule, Any], Mapping[str, Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Do what ``train_and_test`` does; the record holds ``test_above_chance``, too.

    Args:
        trial: Arm, seed and folder.
        settings: What all arms share.
        inspect: As for ``train_and_test``.
        options: As for ``fit_classifier``.
    """
    fits = fit_classifier(trial, settings, **options)
    record = evaluate_selected(trial, fits, inspect=inspect)
    return {
        "backbone": options.get("backbone") or settings.backbone,
        "weights": options.get("weights") or settings.weights,
        **record,
        METRIC: above_chance(fits.best.module.confusion),  # type: ignore[arg-type]
    }


def one_answer(results: pd.DataFrame) -> float | None:
    """Return the accuracy of one answer for all validation images, the mean over trials; None where not recorded."""
    if "one_answer_accuracy" not in results or results["one_answer_accuracy"].isna().all():
        return None
    return float(results["one_answer_accuracy"].mean())
