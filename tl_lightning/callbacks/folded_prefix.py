"""What is frozen, run without a graph and with its BatchNorm folded, for fits in which nothing can be cached."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tl_lightning.activations.extraction import FrozenPrefix
from tl_lightning.callbacks.stage_callback import callbacks_of
from tl_lightning.callbacks.unfreezing import ProgressiveUnfreezing
from tl_lightning.errors import UserError


class FoldedPrefix(Callback):
    """Runs the frozen stages of a ``TransferModule`` as one folded graph: for augmentation, or a schedule that thaws.

    Exact up to rounding, since frozen stages are in eval mode: the folded copy computes what they do, in 0.4
    (MobileNet, EfficientNet) to 0.8 (ResNet-18) of the time. It follows ``ProgressiveUnfreezing``: made anew when the
    frozen depth changes, gone when nothing is frozen and when the fit ends, so that the module is left as it was.
    Where nothing changes the images, ``CachedDataModule`` is quicker still.

    Raises:
        UserError: At the start of the fit, without ``ProgressiveUnfreezing`` on the backbone, with a BatchNorm policy
            under which frozen stages train, or in a module that is no ``TransferModule``.
    """

    def __init__(self) -> None:
        self._depth = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot be folded."""
        if stage != "fit":
            return
        if not hasattr(pl_module, "use_prefix"):
            raise UserError(f"FoldedPrefix runs in a TransferModule, not in {type(pl_module).__name__}")
        unfreezing = _unfreezing(trainer)
        if unfreezing is None:
            raise UserError("FoldedPrefix folds what ProgressiveUnfreezing freezes: add that callback too")
        if unfreezing.bn not in ("eval", "recalibrate"):
            raise UserError(f"FoldedPrefix needs frozen BatchNorm, but bn={unfreezing.bn!r} trains it: leave it out")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fold what is frozen in this epoch."""
        self._follow(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Fold what is frozen, where a resumed run goes on within an epoch."""
        self._follow(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def _follow(self, trainer: pl.Trainer, module: Any) -> None:
        unfreezing = _unfreezing(trainer)
        assert unfreezing is not None  # checked in setup
        depth = unfreezing.frozen.depth or 0
        if depth == self._depth:
            return
        self._release(module)
        if depth:
            prefix, suffix = module.stages.split(module.stages.boundary_before(depth))
            module.use_prefix(FrozenPrefix(prefix, module.device, module.normalise), suffix)
        self._depth = depth

    def _release(self, module: Any) -> None:
        self._depth = 0
        if hasattr(module, "use_prefix"):
            module.use_prefix(None, None)


def _unfreezing(trainer: pl.Trainer) -> ProgressiveUnfreezing | None:
    found = [c for c in callbacks_of(trainer) if isinstance(c, ProgressiveUnfreezing) and c.attribute == "backbone"]
    return found[0] if found else None
