"""What a checkpoint remembers of the command that trained it: model, data and class names."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from tl_lightning.errors import UserError
from tl_lightning.paths import user_path

_KEY = "tl_lightning"


@dataclass(frozen=True)
class Record:
    """What is needed to build the model of a checkpoint again.

    Attributes:
        model: ``class_path`` and ``init_args`` of the module.
        data: ``class_path`` and ``init_args`` of the data module.
        class_names: The classes, in the order of the model's outputs.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    class_names: list[str]

    def settings(self) -> dict[str, Any]:
        """Return the settings that the checkpoint itself may choose: classes of this package with plain arguments.

        A file from elsewhere could name any importable class; others than the package's own are left to ``--config``.
        """
        parts = {"model": self.model, "data": self.data}
        return {key: value for key, value in parts.items() if _harmless(value)}


def _harmless(part: Mapping[str, Any]) -> bool:
    own = str(part.get("class_path")).startswith("tl_lightning.")
    return own and not any(isinstance(value, Mapping) for value in part.get("init_args", {}).values())


def read_record(path: str | Path) -> Record | None:
    """Return the record of a checkpoint, or None where another program wrote it; runs no code that it may hold.

    Raises:
        UserError: There is no such file, or it is no checkpoint that can be loaded safely.
    """
    path = user_path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}; fit leaves one in logs/fit/version_N/checkpoints/best.ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a file of tensors and plain data alone, and is not loaded as it could run code"
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as a checkpoint ({reason})") from error
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise UserError(
            f"{path} is no checkpoint of a fit: for the weights of a backbone use fit --model.weights {path}"
        )
    found = content.get(_KEY)
    try:
        return Record(**found) if found is not None else None
    except TypeError as error:
        raise UserError(f"{path} was written by another version of tl_lightning: pass its config.yaml too") from error


class WriteRecord(Callback):
    """Put the record into every checkpoint.

    Args:
        record: What to write.
    """

    def __init__(self, record: Record) -> None:
        self.record = record

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the record to what is saved."""
        checkpoint[_KEY] = asdict(self.record)
