"""What runs on a worker: one trial, claimed in the study's folder as any process claims it."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_lightning.study.launchers.source import StudySource
from tl_lightning.study.records import RecordStore
from tl_lightning.study.trial_run import run_claimed

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """A trial for a worker; plain values only, as it is sent to other machines.

    Attributes:
        source: Where the study is.
        settings: The values of its settings.
        folder: The output folder, which all machines share.
        trial: Id of the trial.
        ticket: The same for all attempts at the trial: an attempt takes over what a dead one before it held.
        again: Run it although it has a record of a failure.
        directory: Where relative paths begin.
    """

    source: StudySource
    settings: dict[str, Any]
    folder: str
    trial: str
    ticket: str
    again: bool
    directory: str


def run_task(task: Task) -> dict[str, Any]:
    """Run the trial, write its record and return it; another process may have been faster."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with suppress(OSError):  # a machine without that folder can do with absolute paths
        os.chdir(task.directory)
    study = task.source.load()
    settings = study.settings(**task.settings)
    out = Path(task.folder)
    trial = next(trial for trial in study.trials(settings, out) if trial.id == task.trial)
    store = RecordStore(out)
    earlier = store.record(trial.id) if task.again else None
    with store.claims:
        while not store.claims.take(trial.id, ticket=task.ticket):
            time.sleep(POLL_SECONDS)
        found = store.record(trial.id)
        if found is not None and found != earlier:
            return found
        record = run_claimed(study, settings, trial, store)
    return store.record(trial.id) or record
