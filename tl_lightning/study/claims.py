"""Which process runs which trial, so that several share an output folder without running a trial twice."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from tl_lightning.errors import UserError
from tl_lightning.study.lock import is_running, start_time

NAME = "claim.json"
PROCESSES = ".processes"  # no trial's name begins with a dot
BEAT_SECONDS = 10.0
PATIENCE_SECONDS = 120.0  # of silence, until a process that cannot be looked for counts as gone
MACHINE = ("host", "boot", "namespace")


class Claims:
    """The trials that this process runs, as a file beside each.

    A claim is made by a hard link, which either is made or is there already, on network file systems too. It names
    its process. What a dead process of this host left is taken over at once; a claim of another host, when nobody
    has renewed it for two minutes by the file system's own clock. All claims of this process are renewed by a thread
    and given back at the end of the ``with`` block.

    Args:
        out: The study's output folder.
        lock: Keeps other processes off the folder, for as long as a stale claim is removed.
    """

    def __init__(self, out: Path, lock: Callable[[], AbstractContextManager[None]]) -> None:
        self.out = out
        self.lock = lock
        self.trials = out / "trials"
        self._held: dict[Path, str] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claims:
        """Sign in as one of the processes that work in the folder."""
        own = self.trials / PROCESSES / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}.json"
        self._own = own
        self._make(own)
        self._end.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="claims")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what is held."""
        self._end.set()
        for path in list(self._held):
            self._remove(path)
        with contextlib.suppress(OSError):
            (self.trials / PROCESSES).rmdir()

    def take(self, trial: str, ticket: str | None = None) -> bool:
        """Claim the trial; False where another process that is alive has it.

        Args:
            trial: Its id.
            ticket: Of a launcher: who had the same one is known to be dead.
        """
        path = self.trials / trial / NAME
        while True:
            if path.exists() and not self._drop_stale(path, ticket):
                return False
            if self._make(path, ticket):
                return True

    def release(self, trial: str) -> None:
        """Give the trial back; its record is written by now, or another may run it."""
        self._remove(self.trials / trial / NAME)

    def holds(self, trial: str) -> bool:
        """Return whether the claim is still this process's own: one that slept for long may have lost it."""
        path = self.trials / trial / NAME
        return path in self._held and _read(path).get("token") == self._held[path]

    def holder(self, trial: str) -> str:
        """Return who runs the trial, for people; empty where nobody does."""
        return _words(_read(self.trials / trial / NAME))

    def others(self) -> list[str]:
        """Return the other processes that work in the folder now; those that are gone are signed out."""
        return [_words(_read(path)) for path in self._processes() if not self._drop_stale(path)]

    def _processes(self) -> Iterator[Path]:
        for path in sorted((self.trials / PROCESSES).glob("*.json")):
            if path not in self._held:
                yield path

    def _make(self, path: Path, ticket: str | None = None) -> bool:
        token = secrets.token_hex(8)
        owner = {**identity(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": token, "ticket": ticket}
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(owner))
            _link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}; finished trials are kept") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._held[path] = token
        return True

    def _remove(self, path: Path) -> None:
        token = self._held.pop(path, None)
        with contextlib.suppress(OSError):
            if token is not None and _read(path).get("token") == token:
                path.unlink()

    def _drop_stale(self, path: Path, ticket: str | None = None) -> bool:
        """Remove the claim of a process that is gone; return whether the place is free now."""
        seen = _read(path)
        if not (ticket is not None and seen.get("ticket") == ticket) and not self._is_gone(path, seen):
            return False
        with self.lock():
            if _read(path) == seen:  # nobody was faster: what is there now could be a claim that is alive
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        return not os.path.lexists(path)

    def _is_gone(self, path: Path, owner: dict[str, Any]) -> bool:
        here = identity()
        if os.name == "posix" and owner and all(owner.get(key) == here[key] for key in MACHINE):
            return not is_running(owner)
        try:
            return self._now() - path.stat().st_mtime > PATIENCE_SECONDS
        except OSError:
            return True

    def _now(self) -> float:
        """Return the file system's time, which may not be this host's."""
        probe = self.out / f".clock.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            for path in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(path)


def identity() -> dict[str, Any]:
    """Return what tells this process from all others: process, its start, host, boot and process namespace."""
    return {
        "pid": os.getpid(),
        "start": start_time(os.getpid()),
        "host": socket.gethostname(),
        "boot": _first_line(Path("/proc/sys/kernel/random/boot_id")),
        "namespace": _link_target(Path("/proc/self/ns/pid")),  # containers may share a host name
    }


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if not temporary.exists():
            raise
        with open(path, "x", encoding="utf-8") as file:
            file.write(temporary.read_text())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _words(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'unknown')}" if owner else ""


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().split("\n")[0]
    except OSError:
        return None


def _link_target(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
