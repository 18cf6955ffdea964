"""Transfer between the classes of one set, with a network of one's own of which all is known, and its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tl_lightning.study.design import Trial
from tl_lightning.study.settings import Settings
from tl_lightning.study.source import pretrained_on, source_columns, source_record, sources
from tl_lightning.study.step_budget import step_budget
from tl_lightning.study.training import data_module, train_and_test

Start = Literal["source", "self", "random"]


@dataclass(frozen=True)
class OwnTransfer:
    """From some classes of a set to others (Yosinski et al. 2014).

    Attributes:
        settings: Data, backbone and image size; its weights are not used.
        source: Classes that the network is pretrained on.
        target: Classes that it is transferred to.
        source_epochs: Epochs of the pretraining.
        steps: Optimizer steps on the target, rounded up to whole epochs.
        fresh_rates: Learning rates of what begins with random weights, the pretraining and a head alone among them.
        source_samples: Training images of each source class; all of them by default.
    """

    settings: Settings
    source: Sequence[str]
    target: Sequence[str]
    source_epochs: int
    steps: int
    fresh_rates: Sequence[float]
    source_samples: int | None = None

    def check(self, most: int, seed: int) -> None:
        """Raise ``UserError`` for classes that are not there, or have fewer than ``most`` training images."""
        data_module(self.settings, seed, samples_per_class=self.source_samples, classes=tuple(self.source))
        data_module(self.settings, seed, samples_per_class=most, classes=tuple(self.target))

    def run(self, trial: Trial, start: Start, samples_per_class: int, *, frozen: bool = False) -> dict[str, Any]:
        """Train on the target classes and return the trial's record.

        Args:
            trial: Arm, seed and folder.
            start: ``source``: pretrained on the source classes; ``self``: pretrained on the very target images, with
                as many steps; ``random``: not at all.
            samples_per_class: Training images of each target class.
            frozen: Train the head alone, with the BatchNorm statistics of the target images (random layers have none).
        """
        settings = self.settings
        options = {"samples_per_class": samples_per_class, "classes": tuple(self.target)}
        images = data_module(settings, trial.seed, **options)
        budget = step_budget(self.steps, len(images.train_set), settings.batch_size)
        path = self.network(trial, start, samples_per_class)
        record = train_and_test(
            trial,
            settings,
            weights="none" if path is None else str(path),
            freezing="head" if frozen else 0,
            bn="recalibrate" if frozen else "eval",
            epochs=budget.epochs,
            callbacks=budget.callbacks,
            learning_rates=self.fresh_rates if frozen or path is None else None,
            data_options=options,
        )
        words = {"source": f"own, classes {' '.join(self.source)}", "self": "own, the target images", "random": "none"}
        columns = {} if path is None else source_columns(path)
        return {**record, **columns, "weights": words[start], "data": settings.data, "image_size": settings.image_size}

    def network(self, trial: Trial, start: Start, samples_per_class: int) -> Path | None:
        """Return what an arm begins with; all arms of a seed share it."""
        if start == "random":
            return None
        folder, rates = sources(trial), self.fresh_rates
        path = pretrained_on(
            self.settings,
            self.source,
            trial.seed,
            folder=folder,
            epochs=self.source_epochs,
            learning_rate=rates,
            samples_per_class=self.source_samples,
        )
        if start == "source":
            return path
        return pretrained_on(
            self.settings,
            self.target,
            trial.seed,
            folder=folder,
            steps=source_record(path)["steps"],
            learning_rate=rates,
            samples_per_class=samples_per_class,
        )
