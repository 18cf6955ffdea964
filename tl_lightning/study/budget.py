"""What an arm may spend: optimizer steps as epochs, learning rates of its own."""

from __future__ import annotations

import math

from tl_lightning.errors import UserError


def epochs_for(steps: int, images: int, batch_size: int) -> int:
    """Return the fewest epochs that make at least so many optimizer steps.

    Args:
        steps: Optimizer steps, at least 1.
        images: Training images.
        batch_size: Images a step; an epoch's last step may have fewer.
    """
    return math.ceil(steps / math.ceil(images / batch_size))


def rates(given: float | list[float]) -> list[float]:
    """Return one learning rate or several as a list, in ascending order."""
    return sorted(given) if isinstance(given, list) else [float(given)]


def check_rates(flag: str, given: float | list[float], count: int) -> None:
    """Refuse learning rates of an arm's own that are no such range, or not as many as the other arms try.

    Raises:
        UserError: The line names the flag.
    """
    found = rates(given)
    if not found or min(found) <= 0 or len(set(found)) != len(found):
        raise UserError(f"{flag} must be distinct numbers above 0, not {given}")
    if len(found) != count:
        raise UserError(
            f"{flag} names {len(found)} where the other arms try {count} (--learning-rates): every arm is tuned alike"
        )
