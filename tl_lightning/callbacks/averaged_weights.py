"""Callbacks that work on the weights in training cannot be beside one that validates averaged weights."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, WeightAveraging

from tl_lightning.callbacks.stage_callback import callbacks_of
from tl_lightning.errors import UserError


def refuse_averaged_weights(callback: Callback, trainer: pl.Trainer) -> None:
    """Refuse Lightning's ``WeightAveraging``, which puts its weights in place for the validation epoch alone.

    Raises:
        UserError: There is one.
    """
    for other in callbacks_of(trainer):
        if isinstance(other, WeightAveraging):
            raise UserError(
                f"{type(callback).__name__} works on the weights in training, but {type(other).__name__} validates "
                "averaged ones: remove one of them"
            )
