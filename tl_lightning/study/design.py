"""The design of a study: its arms, its trials, and the functions that make it a study."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_lightning.study.settings import Settings

if TYPE_CHECKING:
    from tl_lightning.study.report import Report

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Arm:
    """One of the alternatives that a study compares.

    Attributes:
        name: Short unique name, shown in tables and figures.
        factors: What sets the arm apart; a column each in ``results.csv``.
    """

    name: str
    factors: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """An arm at one seed: the unit that is run, recorded and paired.

    Attributes:
        study: Name of the study.
        arm: The arm.
        seed: Fixes split, subset, head initialisation and batch order across all arms.
        folder: Where the trial's record and event files go.
    """

    study: str
    arm: Arm
    seed: int
    folder: Path

    @property
    def id(self) -> str:
        """Name of the trial, valid as a folder name."""
        return trial_id(self.arm, self.seed)


def trial_id(arm: Arm, seed: int) -> str:
    """Return the name of the trial of ``arm`` at ``seed``."""
    return f"{re.sub(r'[^A-Za-z0-9.+=-]+', '-', arm.name).strip('-')}--seed{seed}"


@dataclass(frozen=True)
class Study:
    """A question and the way to answer it.

    Attributes:
        name: Name of the script, the YAML files and the output folder.
        question: One sentence.
        background: What the reader must know to read the result, in Markdown.
        arms: Returns the arms for the settings.
        run: Runs one trial and returns its record's values; called once for each arm and seed.
        report: Fills the report from the results.
        settings: Settings class; studies with settings of their own derive one.
        check: Called once before the first trial; raises ``UserError`` for settings that no trial could run.
        plan: Says what an arm will do, epoch by epoch, without training; ``--plan`` prints it for all arms.
    """

    name: str
    question: str
    background: str
    arms: Callable[[Any], list[Arm]]
    run: Callable[[Trial, Any], dict[str, Any]]
    report: Callable[[Report], None]
    settings: type[Settings] = Settings
    check: Callable[[Any], None] | None = None
    plan: Callable[[Arm, Any], object] | None = None

    def trials(self, settings: Settings, out: Path) -> list[Trial]:
        """Return all trials, seed by seed, so that what an interrupted study has is paired."""
        arms = self.arms(settings)
        return [
            Trial(self.name, arm, seed, out / "trials" / trial_id(arm, seed))
            for seed in settings.seed_list()
            for arm in arms
        ]
