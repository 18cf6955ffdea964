"""Run one trial to its record: well, failed, or with smaller batches where memory was short."""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tl_lightning.errors import UserError
from tl_lightning.study.checkpoints import NAME as CHECKPOINT
from tl_lightning.study.design import Study, Trial
from tl_lightning.study.devices import resolve_devices
from tl_lightning.study.environment import environment
from tl_lightning.study.failures import end_of_study, free_memory, is_out_of_memory
from tl_lightning.study.ranks import trial_processes
from tl_lightning.study.records import RecordStore
from tl_lightning.study.settings import Settings
from tl_lightning.study.signals import check_stopped


def run_claimed(study: Study, settings: Settings, trial: Trial, store: RecordStore) -> dict[str, Any]:
    """Run a trial that this process has claimed; write its record unless another process took it over meanwhile."""
    record = run_trial(study, settings, trial)
    if store.claims.holds(trial.id):
        store.write(record)
        clear_checkpoints(trial.folder)
    return record


def run_trial(study: Study, settings: Settings, trial: Trial) -> dict[str, Any]:
    """Return the trial's record; a failure is a record too, with its traceback beside it.

    With ``settings.auto_batch`` a trial that runs out of memory is run again with half the images a forward pass, and
    gradients added up to the same batch size; the record says so in ``micro_batch``.

    Raises:
        Stopped: A signal asks the study to end.
        UserError: What went wrong would meet every later trial as well.
    """
    began, start = datetime.now(UTC), time.perf_counter()
    try:
        prepare_folder(trial.folder)
    except OSError as error:
        raise UserError(f"cannot write {trial.folder}: {error.strerror or error}; finished trials are kept") from error
    values = _attempt(study, settings, trial)
    while values.pop("out_of_memory", False) and settings.auto_batch and settings.micro_batch_size() > 1:
        settings = settings.halved()
        clear_checkpoints(trial.folder)
        (trial.folder / "error.txt").unlink(missing_ok=True)
        values = _attempt(study, settings, trial)
    return _record(study, settings, trial, values, began, time.perf_counter() - start)


def failed_record(study: Study, settings: Settings, trial: Trial, error: str) -> dict[str, Any]:
    """Return the record of a trial that could not be run."""
    return _record(study, settings, trial, {"status": "failed", "error": error}, datetime.now(UTC), 0.0)


def _record(
    study: Study, settings: Settings, trial: Trial, values: dict[str, Any], began: datetime, seconds: float
) -> dict[str, Any]:
    return {
        "trial": trial.id,
        "study": study.name,
        "arm": trial.arm.name,
        "factors": dict(trial.arm.factors),
        "seed": trial.seed,
        "data": settings.data,
        "image_size": settings.image_size,
        "device": resolve_devices(settings.gpus, settings.precision).name,
        "micro_batch": settings.micro_batch_size(),
        "processes": settings.ranks(),
        "deterministic": settings.deterministic,
        **values,
        "start_time": began.isoformat(timespec="milliseconds"),
        "wall_seconds": seconds,
        "settings": settings.recorded(),
        **environment(),
    }


def prepare_folder(folder: Path) -> None:
    """Remove what a call that was killed left of the trial, but for the fits that can go on."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if not any(entry.rglob(CHECKPOINT)):
                shutil.rmtree(entry)
        elif entry.name == "error.txt" or (entry.name.startswith(".") and entry.name.endswith(".tmp")):
            entry.unlink()


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a trial that has ended."""
    for path in folder.rglob(CHECKPOINT):
        with contextlib.suppress(OSError):
            path.unlink()


def _attempt(study: Study, settings: Settings, trial: Trial) -> dict[str, Any]:
    check_stopped()
    try:
        with trial_processes(study, settings, trial):
            return {**study.run(trial, settings), "status": "ok", "error": ""}
    except SystemExit as error:  # Lightning ends a fit so on Ctrl-C and on SIGTERM
        check_stopped()
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        values = _failure(error, trial)
    except Exception as error:
        check_stopped()
        fatal = end_of_study(error, trial.folder.parents[1], settings.data_dir)
        if fatal is not None:
            raise fatal from error
        values = _failure(error, trial)
    free_memory()
    return values


def _failure(error: BaseException, trial: Trial) -> dict[str, Any]:
    """Return the values of a failed trial; nothing of them refers to the error, which holds the trial's tensors."""
    with contextlib.suppress(OSError):
        (trial.folder / "error.txt").write_text("".join(traceback.format_exception(error)))
    words = " ".join(str(error).split())
    values = {"status": "failed", "error": f"{type(error).__name__}: {words}"}
    return {**values, "out_of_memory": True} if is_out_of_memory(error) else values
