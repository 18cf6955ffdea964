"""LightningModules for the tasks."""

from tl_lightning.tasks.base import NonFiniteLossError, TaskModule
from tl_lightning.tasks.classification import TransferModule

__all__ = ["NonFiniteLossError", "TaskModule", "TransferModule"]
