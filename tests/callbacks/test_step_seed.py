from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fits import Plain, ResumableLoader, fit, loader
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tl_lightning.callbacks import StepSeed


class Draws(Callback):
    """Notes what every global generator draws in every batch, and the batch itself."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], tuple[float, float, float]] = {}
        self.images: dict[tuple[int, int], float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        key = (trainer.current_epoch, batch_idx)
        self.rows[key] = (float(torch.rand(())), float(np.random.rand()), random.random())  # noqa: NPY002
        self.images[key] = float(batch[0].sum())


def run(seed: int, disturb: int = 0, **options: Any) -> Draws:
    torch.manual_seed(disturb)
    seen = Draws()
    fit(Plain(), [StepSeed(seed), seen, *options.pop("callbacks", [])], options.pop("epochs", 3), **options)
    return seen


def test_numbers_are_a_function_of_seed_epoch_and_batch() -> None:
    first, again, other = run(0), run(0, disturb=5), run(1)
    assert first.rows == again.rows
    drawn = [value for row in [*first.rows.values(), *other.rows.values()] for value in row]
    assert len(drawn) == len(set(drawn)) == 2 * 9 * 3


def test_a_shuffling_loader_draws_the_same_order_again_and_another_in_every_epoch() -> None:
    first, again = (run(0, disturb=d, train=loader(shuffle=True)) for d in (0, 5))
    assert first.images == again.images
    epochs = [[value for (e, _), value in first.images.items() if e == epoch] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_resumed_run_draws_the_same_numbers_and_the_same_order(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    options: dict[str, Any] = {"callbacks": [save], "enable_checkpointing": True}
    whole = run(0, train=loader(shuffle=True), **options)
    for epoch in (0, 1):
        resumed = run(0, disturb=9, train=loader(shuffle=True), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert min(resumed.rows) == (epoch + 1, 0)
        assert resumed.rows.items() <= whole.rows.items()
        assert resumed.images.items() <= whole.images.items()


def test_in_mid_epoch_too(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(0, train=ResumableLoader(), callbacks=[save], enable_checkpointing=True)
    resumed = run(0, disturb=9, train=ResumableLoader(), ckpt_path=tmp_path / "step=4.ckpt")
    assert min(resumed.rows) == (1, 1)
    assert resumed.rows.items() <= whole.rows.items()
