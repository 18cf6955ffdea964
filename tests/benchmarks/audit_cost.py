"""What FreezeAudit costs, as a share of the training steps it watches.

    python tests/benchmarks/audit_cost.py [--repeats 5]

ResNet-18 at 32 px, batches of 16, frozen up to layer4, on random images: small steps, so the share is on the high side.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset

from tl_lightning import FreezeAudit, ProgressiveUnfreezing

STEPS, BATCH = 110, 16
WATCHED = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end")


class Module(pl.LightningModule):
    """A plain classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18(num_classes=10)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        return torch.nn.functional.cross_entropy(self.backbone(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def timed_audit() -> FreezeAudit:
    """Return an audit that adds up the seconds of its own hooks in ``spent``."""
    audit = FreezeAudit()
    audit.spent = 0.0

    def timed(hook: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> None:
            start = time.perf_counter()
            hook(*arguments, **keywords)
            audit.spent += time.perf_counter() - start

        return call

    for name in WATCHED:
        setattr(audit, name, timed(getattr(audit, name)))
    return audit


class Clock(Callback):
    """Adds up the seconds of the steps."""

    spent = 0.0

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Stop the clock."""
        self.spent += time.perf_counter() - self.start


def share() -> float:
    """Return the audit's share of the seconds of one fit's steps."""
    images = TensorDataset(torch.rand(STEPS * BATCH, 3, 32, 32), torch.randint(10, (STEPS * BATCH,)))
    audit, clock = timed_audit(), Clock()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, ProgressiveUnfreezing("layer4"), audit],
    )
    trainer.fit(Module(), DataLoader(images, batch_size=BATCH))
    return audit.spent / clock.spent


def main() -> None:
    """Print the median share and the single ones."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("--repeats", type=int, default=5)
    repeats = line.parse_args().repeats
    warnings.filterwarnings("ignore")
    shares = [share() for _ in range(repeats)]
    each = ", ".join(f"{value:.2%}" for value in shares)
    print(f"audit: {statistics.median(shares):.2%} of the steps' time (median of {repeats}: {each})")


if __name__ == "__main__":
    main()
