"""As many optimizer steps for a small training set as for a large one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch.callbacks import Callback

from tl_lightning.callbacks.validate_every import ValidateEvery
from tl_lightning.errors import UserError
from tl_lightning.study.budget import epochs_for
from tl_lightning.study.settings import Settings


@dataclass(frozen=True)
class Budget:
    """How long to train on a training set of one size.

    Attributes:
        epochs: Passes over the training images.
        validate_every: Epochs from one validation to the next; divides ``epochs``.
    """

    epochs: int
    validate_every: int

    def callbacks(self) -> list[Callback]:
        """Return the callback that validates in these epochs only."""
        return [ValidateEvery(self.validate_every)]


def equal_steps(images: int, most_images: int, settings: Settings, validations: int = 8) -> Budget:
    """Return the epochs in which a set takes as many steps as the largest set in ``settings.epochs``.

    With equal epochs a small set would be trained in fewer steps, and a difference between sizes would be one of
    training as well.

    Args:
        images: Training images.
        most_images: Training images of the largest set of the study.
        settings: Batch size and epochs of the largest set.
        validations: About how often to validate at most; the epochs are rounded to a multiple.
    """
    steps = settings.epochs * math.ceil(most_images / settings.batch_size)
    return step_budget(steps, images, settings.batch_size, validations)


def step_budget(steps: int, images: int, batch_size: int, validations: int = 8) -> Budget:
    """Return the epochs that make at least so many optimizer steps.

    Args:
        steps: Optimizer steps.
        images: Training images.
        batch_size: Images a step.
        validations: About how often to validate at most; the epochs are rounded up to a multiple.
    """
    epochs = epochs_for(steps, images, batch_size)
    every = max(1, epochs // validations)
    return Budget(every * math.ceil(epochs / every), every)


def check_sizes(sizes: Sequence[int], flag: str = "--sizes") -> None:
    """Refuse training-set sizes between which nothing can be compared.

    Args:
        sizes: Images, or images a class.
        flag: What to call them.

    Raises:
        UserError: Fewer than two, one of them twice, or one below 1.
    """
    if len(sizes) < 2 or len(set(sizes)) < len(sizes) or min(sizes) < 1:
        raise UserError(f"{flag} must be at least two different numbers above 0, not {sizes}")
