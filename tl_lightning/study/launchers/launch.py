"""Have trials run by workers elsewhere; a worker that dies has its trial run again, at most three times."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tl_lightning.errors import unknown_name
from tl_lightning.study.design import Study, Trial
from tl_lightning.study.launchers.source import StudySource
from tl_lightning.study.launchers.worker import Task
from tl_lightning.study.records import LOCK_SECONDS, RecordStore
from tl_lightning.study.settings import Settings
from tl_lightning.study.signals import check_stopped
from tl_lightning.study.trial_run import failed_record

ATTEMPTS = 3
LAUNCHERS = ("local", "ray", "slurm")


class WorkerDied(Exception):
    """The worker ended without a result; the text says how."""


class Backend(Protocol):
    """What a launcher must be able to do.

    Attributes:
        width: Tasks to hand over at one time, so that a study of ten thousand trials does not fill a queue.
    """

    width: int

    def submit(self, task: Task) -> Any:
        """Hand a task over; return what stands for it."""

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Wait for a moment and return those that have ended."""

    def result(self, handle: Any) -> dict[str, Any]:
        """Return the record of a task that has ended; raise `WorkerDied` where there is none."""

    def close(self, handles: Sequence[Any]) -> None:
        """End what still runs and leave."""


def launched(
    study: Study, settings: Settings, trials: Sequence[Trial], store: RecordStore, say: Callable[[str], None]
) -> Generator[dict[str, Any], None, None]:
    """Yield the record of each trial as it ends.

    Args:
        study: The study, a variable of a script that the workers can read.
        settings: Its settings; ``launcher`` and ``launcher_options`` say where.
        trials: What is left to run.
        store: The output folder, which all workers share.
        say: Tells the user of workers that died.
    """
    source = StudySource.of(study)
    backend = _backend(settings, store)
    tasks = {trial.id: _task(source, settings, trial, store) for trial in trials}
    waiting = list(trials)
    running: dict[Any, Trial] = {}
    deaths: dict[str, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < backend.width:
                trial = waiting.pop(0)
                running[backend.submit(tasks[trial.id])] = trial
            for handle in backend.wait(list(running)):
                trial = running.pop(handle)
                try:
                    record = backend.result(handle)
                except WorkerDied as death:
                    deaths[trial.id] = deaths.get(trial.id, 0) + 1
                    say(f"the worker of {trial.id} died ({death}), attempt {deaths[trial.id]} of {ATTEMPTS}")
                    if deaths[trial.id] < ATTEMPTS:
                        waiting.insert(0, trial)
                        continue
                    record = failed_record(study, settings, trial, f"its worker died {ATTEMPTS} times: {death}")
                    store.write(record)
                if store.record(trial.id) is None:  # the worker's folder is not this one
                    store.write(record)
                yield record
            check_stopped()
    finally:
        backend.close(list(running))


def _task(source: StudySource, settings: Settings, trial: Trial, store: RecordStore) -> Task:
    return Task(
        source=source,
        settings={**dataclasses.asdict(settings), "launcher": "local", "launcher_options": {}},
        folder=str(store.out.resolve()),
        trial=trial.id,
        ticket=secrets.token_hex(8),
        again=store.record(trial.id) is not None,
        directory=str(Path.cwd()),
    )


def _backend(settings: Settings, store: RecordStore) -> Backend:
    if settings.launcher == "ray":
        from tl_lightning.study.launchers.on_ray import RayBackend

        return RayBackend(settings)
    if settings.launcher == "slurm":
        from tl_lightning.study.launchers.on_slurm import FOLDER, SlurmBackend

        with store.lock(LOCK_SECONDS):
            store.own(FOLDER)
        return SlurmBackend(settings, store.out)
    raise unknown_name("launcher", settings.launcher, LAUNCHERS)
