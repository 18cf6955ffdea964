"""Several trials at one time on one machine's processor: further processes that share the study's trials."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tl_lightning.errors import UserError
from tl_lightning.study.design import Study
from tl_lightning.study.devices import resolve_devices
from tl_lightning.study.launchers.source import StudySource
from tl_lightning.study.records import RecordStore
from tl_lightning.study.settings import Settings
from tl_lightning.study.signals import Stopped, stop_signals
from tl_lightning.study.tensorboard import errors_told_once
from tl_lightning.study.trial_run import run_claimed
from tl_lightning.study.work import Work

END_SECONDS = 10.0  # for a helper that is told to stop to leave its trial in good order


def jobs_of(study: Study, settings: Settings) -> int:
    """Return how many trials run at one time: on a CPU ``settings.jobs``, but no more than there are cores.

    One on a GPU, with a launcher, with several processes a trial, and where another process cannot load the study: in
    a notebook.
    """
    on_gpu = resolve_devices(settings.gpus, settings.precision).accelerator == "cuda"
    if on_gpu or settings.launcher != "local" or settings.ranks() > 1 or not StudySource.is_named(study):
        return 1
    return min(settings.jobs, _cores())


@contextmanager
def share_of_threads(study: Study, settings: Settings) -> Iterator[None]:
    """Let torch use a trial's share of the threads: their number decides the last bits of a sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // jobs_of(study, settings)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def helping_processes(study: Study, settings: Settings, store: RecordStore, left: int) -> Iterator[None]:
    """Start the processes that work on the trials beside this one; they end with it, however it ends.

    Args:
        study: The study, a variable of a script.
        settings: Its settings; ``jobs`` counts this process too.
        store: The output folder.
        left: Number of trials to run: no more processes than trials are started.
    """
    number = min(jobs_of(study, settings), left) - 1
    note = json.dumps(_note(study, settings, store)) if number > 0 else ""
    helpers = [_start(note) for _ in range(number)]
    try:
        with share_of_threads(study, settings):
            yield
    except BaseException:
        for helper in helpers:
            helper.send_signal(signal.SIGTERM)
        raise
    finally:
        for helper in helpers:
            _end(helper)


def help_along() -> None:
    """Run trials in the place of the process whose note stands on standard input, until none is left or it is gone."""
    note = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_leader, daemon=True).start()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.chdir(note["directory"])
    study = StudySource(**note["source"]).load()
    settings = study.settings(**note["settings"])
    out = Path(note["folder"])
    store = RecordStore(out)
    told_by_the_leader = contextlib.suppress(Stopped, UserError)
    with stop_signals(), told_by_the_leader, errors_told_once(), share_of_threads(study, settings), store.claims:
        work = Work(study.trials(settings, out), store, settings.retry_failed)
        for trial in work.claimed(lambda record: None, lambda trials: None):
            run_claimed(study, settings, trial, store)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _note(study: Study, settings: Settings, store: RecordStore) -> dict[str, Any]:
    return {
        "source": asdict(StudySource.of(study)),
        "settings": asdict(settings),
        "folder": str(store.out.resolve()),
        "directory": str(Path.cwd()),
    }


def _start(note: str) -> subprocess.Popen[str]:
    helper = subprocess.Popen(
        [sys.executable, "-c", "from tl_lightning.study.jobs import help_along; help_along()"],
        stdin=subprocess.PIPE,  # stays open: its end tells the helper that this process is gone
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if not os.environ.get("TL_LIGHTNING_DEBUG") else None,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which ends the helper
    )
    assert helper.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        helper.stdin.write(note + "\n")
        helper.stdin.flush()
    return helper


def _end(helper: subprocess.Popen[str]) -> None:
    """Wait for a helper that has nothing left to do, or end it."""
    try:
        helper.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        helper.kill()
        helper.wait()
    finally:
        assert helper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            helper.stdin.close()


def _leave_with_leader() -> None:
    """End at once when the leader is gone; others take over what was claimed, as from any dead process."""
    sys.stdin.read()
    os._exit(1)
