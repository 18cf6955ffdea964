"""A training script as a user writes one, started by test_ddp.py: two processes on CPU."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

sys.path.append(str(Path(__file__).parents[1]))
from fits import Plain, TinyNet, loader, tensors, trainer

from tl_lightning.callbacks import DiscriminativeLR, FreezeAudit, OnPlateau, ProgressiveUnfreezing, StepSeed
from tl_lightning.callbacks.checksums import checksums

SCHEDULES: dict[str, Any] = {
    "two thaws": {0: "head", 1: "layer2", 3: "none"},
    "static": "layer2",
    "on plateau": OnPlateau("val/rank", patience=1),
    "recalibrate": {0: "head", 2: "none"},
}


class Sums(Callback):
    """Writes this rank's checksum of every tensor at the end of every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: dict[int, Any] = {}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        named = tensors(pl_module)
        self.epochs[trainer.current_epoch] = {
            "parameters": checksums(p for n, p in named.items() if "running" not in n and "num_" not in n).tolist(),
            "trains": sorted(n for n, p in pl_module.named_parameters() if p.requires_grad),
            "find_unused": trainer.strategy.model.find_unused_parameters,
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(self.epochs))


class Disagrees(Plain):
    """Logs a metric that is not reduced: rank 0 never sees it improve, rank 1 always does."""

    def on_validation_epoch_end(self) -> None:
        self.log("val/rank", float(self.current_epoch * (1 - 2 * self.global_rank)))


class Desynchronised(Plain):
    """Lets the ranks drift apart, as the known bug does: a thawed layer is stepped with this rank's gradient."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.current_epoch == 1:
            for p in self.backbone.layer2.parameters():
                p.grad = p.grad * (1 + self.global_rank)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("schedule")
    parser.add_argument("--ckpt")
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--diverge", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bn: Any = "recalibrate" if options.schedule == "recalibrate" else "eval"
    callbacks = [
        StepSeed(0),
        ProgressiveUnfreezing(SCHEDULES[options.schedule], bn=bn),
        DiscriminativeLR(decay=0.5),
        FreezeAudit(every_n_steps=2),
        Sums(options.folder),
        ModelCheckpoint(options.folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
    ]
    torch.manual_seed(0)
    kind = {"on plateau": Disagrees}.get(options.schedule, Desynchronised if options.diverge else Plain)
    made = trainer(
        5,
        callbacks,
        devices=2,
        strategy=options.strategy,
        enable_checkpointing=True,
    )
    made.fit(kind(TinyNet()), loader(24, 6), loader(12, 6), ckpt_path=options.ckpt, weights_only=False)


if __name__ == "__main__":
    main()
