"""Several processes for one trial: who leads, who follows, and what they tell each other."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed

from tl_lightning.study.atomic import write_json
from tl_lightning.study.claims import PROCESSES
from tl_lightning.study.design import Study, Trial
from tl_lightning.study.launchers.source import StudySource
from tl_lightning.study.records import RecordStore
from tl_lightning.study.settings import Settings
from tl_lightning.study.signals import check_stopped

POLL_SECONDS = 0.2
START_SECONDS = 600.0  # to wait for machine 0 to begin
END_SECONDS = 2.0  # without a process at work in the folder, until the study counts as ended
FOLLOWER = "TL_LIGHTNING_FOLLOWER"


def node_rank() -> int:
    """Return which of the trial's machines this is: NODE_RANK, else that of SLURM, else 0."""
    for name in ("NODE_RANK", "GROUP_RANK", "SLURM_NODEID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def is_follower() -> bool:
    """Return whether this process was started to help with another's trial."""
    return FOLLOWER in os.environ


@contextmanager
def trial_processes(study: Study, settings: Settings, trial: Trial) -> Iterator[None]:
    """Start the other processes of a trial, on this machine and by a note for other machines; end them afterwards.

    Each trial has processes of its own, so that one that fails leaves nobody waiting for the next.
    """
    if settings.ranks() == 1 or is_follower():
        yield
        return
    address = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if settings.num_nodes == 1 else socket.gethostname())
    note = {
        "id": secrets.token_hex(8),
        "source": asdict(StudySource.of(study)),
        "settings": asdict(settings),
        "folder": str(trial.folder.parents[1].resolve()),
        "trial": trial.id,
        "address": address,
        "port": _free_port(),
    }
    path = _note_path(trial.folder.parents[1])
    started = [_start(note, 0, local) for local in range(1, settings.ranks_per_node())]
    before = dict(os.environ)
    try:
        if settings.num_nodes > 1:
            write_json(path, note)
        os.environ.update(_variables(note, 0, 0))
        yield
        _end(started, seconds=10)
    finally:
        os.environ.clear()
        os.environ.update(before)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        _end(started)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def help_node_zero(store: RecordStore, settings: Settings) -> None:
    """On the other machines: start this machine's part of each trial that machine 0 has noted, until it leaves.

    Args:
        store: The output folder, which all machines share.
        settings: Those of the command, the same on all machines.
    """
    seen = ""
    started: list[subprocess.Popen[str]] = []
    last_sign = time.monotonic()
    patience = START_SECONDS
    try:
        while time.monotonic() - last_sign < patience:
            check_stopped()
            if store.claims.others():
                last_sign, patience = time.monotonic(), END_SECONDS
            note = _read(_note_path(store.out))
            if note.get("id", "") != seen:
                _end(started)
                seen = note.get("id", "")
                started = [_start(note, node_rank(), n) for n in range(settings.ranks_per_node())] if note else []
            time.sleep(POLL_SECONDS)
    finally:
        _end(started)


def follow() -> None:
    """Run one trial in step with its leader, whose note comes on standard input; write nothing."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    note = json.load(sys.stdin)
    study = StudySource(**note["source"]).load()
    settings = study.settings(**note["settings"])
    out = Path(note["folder"])
    trial = next(trial for trial in study.trials(settings, out) if trial.id == note["trial"])
    study.run(trial, settings)


def _variables(note: Mapping[str, Any], node: int, local: int) -> dict[str, str]:
    """Return what Lightning's own environment reads."""
    return {
        "MASTER_ADDR": str(note["address"]),
        "MASTER_PORT": str(note["port"]),
        "NODE_RANK": str(node),
        "LOCAL_RANK": str(local),
    }


def _start(note: Mapping[str, Any], node: int, local: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", "from tl_lightning.study.ranks import follow; follow()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if not os.environ.get("TL_LIGHTNING_DEBUG") else None,
        text=True,
        start_new_session=True,  # Ctrl-C is for the leader, which ends this one
        env={**os.environ, **_variables(note, node, local), FOLLOWER: "1"},
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        json.dump(note, stdin)
    return process


def _end(processes: list[subprocess.Popen[str]], seconds: float = 0.0) -> None:
    """Wait for those that have nothing left to do, then end the others."""
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _note_path(out: Path) -> Path:
    group = os.environ.get("SLURM_JOB_ID") or os.environ.get("MASTER_ADDR") or "group"
    return out / "trials" / PROCESSES / f"{group.replace('/', '-')}.group"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _free_port() -> int:  # another one for each trial: the last one's may still be closing
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
