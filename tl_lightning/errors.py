"""Mistakes that the user can mend: one line that says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave; command lines print it as one line and exit with code 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not among the known ones, with the nearest names suggested.

    Args:
        kind: What the name stands for, for example ``"backbone"``.
        name: What the user gave.
        known: All valid names.
    """
    known = [str(k) for k in known]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif len(known) <= 20:
        hint = f"choose from {', '.join(known)}"
    else:
        hint = f"there are {len(known)}, for example {', '.join(known[:3])}"
    return UserError(f"unknown {kind} {name!r}: {hint}")
