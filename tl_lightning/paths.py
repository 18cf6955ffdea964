"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """Return the path with ``~`` as the home directory; ``~name`` of a user that there is not stays as it is.

    ``Path.expanduser`` raises a RuntimeError there, which would reach the user as a traceback.
    """
    return Path(os.path.expanduser(path))
