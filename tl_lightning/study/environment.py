"""What a result depends on beside its settings: versions and the state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "tl_lightning")
PACKAGE_FOLDER = Path(__file__).parents[1]


def environment() -> dict[str, Any]:
    """Return what a record says of the software.

    Returns:
        `versions` (of Python and the packages that train), `git_commit` (of the checkout that holds the package,
        None outside of one) and `git_dirty` (whether code or configurations there differ from the commit). No host
        or user name.
    """
    return {"versions": dict(_versions()), "git_commit": _git_commit(), "git_dirty": _git_dirty()}


@cache  # the code that runs is the one that was there at the start
def _versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    # a virtual environment may lie in some other project's checkout: only files that are tracked count
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git("rev-parse", "HEAD")


@cache
def _git_dirty() -> bool | None:
    if _git_commit() is None:
        return None
    changed = _git("status", "--porcelain", "--", ":/tl_lightning", ":/experiments", ":/configs")
    return None if changed is None else bool(changed)


def _git(*arguments: str) -> str | None:
    """Return what git prints for the package's folder; None without git, checkout or answer."""
    # inside a git hook these variables point to the repository of the hook
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(PACKAGE_FOLDER), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
