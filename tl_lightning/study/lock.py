"""One process at a time on an output folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tl_lightning.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: only the file's content tells who holds it
    fcntl = None  # type: ignore[assignment]

NAME = "study.lock"
_held: set[Path] = set()  # a process may lock a file twice with lockf, so this process keeps count itself


@contextmanager
def folder_lock(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the folder's lock file, with this process, its host and start time in it.

    The system's record lock (`fcntl.lockf`, also across NFS clients) ends with the process that holds it and is not
    inherited by its children, so what a killed process leaves is recovered. Where the file system has no such
    locks, the process named in the file is looked for. A lock of another host is never taken over.

    Args:
        folder: An existing folder.
        wait: Seconds to wait for another process to leave it.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be written.
    """
    path = folder.resolve() / NAME
    if path in _held:
        raise UserError(f"{folder} is in use by this very process; give another --out")
    try:
        descriptor = _acquire(path, folder, time.monotonic() + wait)
    except OSError as error:
        raise UserError(f"{folder} is not writable: {error.strerror or error}; give another --out") from error
    _held.add(path)
    holder = os.getpid()
    try:
        yield
    finally:
        _held.discard(path)
        if os.getpid() == holder:  # not in a forked child that unwinds
            with contextlib.suppress(OSError):
                path.unlink()  # while it is still locked, so that nobody's new lock is removed
        os.close(descriptor)


def _acquire(path: Path, folder: Path, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _system_lock(descriptor)
            if not _still_there(path, descriptor):  # its holder removed it between open and lock
                os.close(descriptor)
                continue
            owner = _read(descriptor)
            free = locked is not False and _may_take_over(owner, bool(locked))
            if free:
                _write(descriptor)
            elif time.monotonic() >= deadline:
                raise UserError(_refusal(folder, path, owner))
        except BaseException:
            os.close(descriptor)
            raise
        if free:
            return descriptor
        os.close(descriptor)
        time.sleep(0.05)


def _system_lock(descriptor: int) -> bool | None:
    """Return True with the lock taken, False where another process has it, None where locks are not supported."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _may_take_over(owner: dict[str, Any], locked: bool) -> bool:
    """Return whether nobody is left who holds the lock that the file names."""
    if not owner:
        return True
    if owner.get("host") != socket.gethostname():
        return False  # some cluster file systems lock within one node only
    return locked or not is_running(owner)


def is_running(owner: dict[str, Any]) -> bool:
    """Return whether the process of this host, named by `pid` and `start`, is alive (True where nobody can tell)."""
    pid = owner.get("pid")
    if fcntl is None or not isinstance(pid, int):
        return True  # cannot tell: on other systems os.kill(pid, 0) would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return start_time(pid) in (None, owner.get("start"))


def start_time(pid: int) -> str | None:
    """Return when the process started (Linux, clock ticks since boot): another start means a reused number.

    A process that has ended, and that its parent has not looked after yet, has no start any more.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if state in "ZX" else fields[18]
    except (OSError, IndexError, ValueError):
        return None


def _read(descriptor: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0).decode())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _write(descriptor: int) -> None:
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "start": start_time(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    os.fsync(descriptor)


def _refusal(folder: Path, path: Path, owner: dict[str, Any]) -> str:
    host = owner.get("host", "unknown")
    line = f"{folder} is in use by process {owner.get('pid', 'unknown')} on {host}"
    if "since" in owner:
        line += f" since {owner['since']}"
    if host not in ("unknown", socket.gethostname()):
        line += f" (if that process is gone, remove {path})"
    return f"{line}; wait for it to end or give another --out"
