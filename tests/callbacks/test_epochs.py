"""Callbacks about epochs: which are validated, which is kept, how well the training images are known by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fits import Plain, changed, fit, loader, tensors
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from tl_lightning import UserError
from tl_lightning.callbacks import BestEpoch, CleanTrainingMetrics, MetricHistory, StepSeed, ValidateEvery


class Scripted(Plain):
    """Logs the losses that a script names, epoch by epoch, in place of measured ones."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train/epoch", float(self.current_epoch), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.losses[self.current_epoch])


class Weights(Callback):
    """Keeps the weights after each epoch."""

    def __init__(self) -> None:
        self.by_epoch: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.by_epoch.append(tensors(pl_module))


def test_the_fit_stops_and_gives_back_weights_and_metrics_of_the_best_epoch() -> None:
    module, weights = Scripted([3.0, 1.0, 2.0, 2.0, 0.5]), Weights()
    trainer = fit(module, [weights, BestEpoch(patience=2)], 5, val=loader())
    assert len(weights.by_epoch) == 4
    assert not changed(weights.by_epoch[1], module)
    assert changed(weights.by_epoch[3], module)
    assert trainer.callback_metrics["val/loss"] == 1.0
    assert trainer.callback_metrics["train/epoch"] == 1.0


def test_a_fit_that_goes_on_improving_is_left_alone() -> None:
    module, weights = Scripted([3.0, 2.0, 1.0]), Weights()
    trainer = fit(module, [weights, BestEpoch(patience=1)], 3, val=loader())
    assert not changed(weights.by_epoch[2], module)
    assert trainer.callback_metrics["val/loss"] == 1.0


def test_a_resumed_fit_still_knows_the_best_epoch(tmp_path: Path) -> None:
    losses = [1.0, 2.0, 3.0, 4.0]
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    torch.manual_seed(0)
    whole = Scripted(losses)
    fit(whole, [StepSeed(0), BestEpoch(patience=2), save], 4, val=loader(), enable_checkpointing=True)
    resumed = Scripted(losses)
    best = BestEpoch(patience=2)
    trainer = fit(resumed, [StepSeed(0), best], 4, val=loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert not changed(tensors(whole), resumed)
    assert trainer.callback_metrics["val/loss"] == 1.0
    assert best.stopped_epoch == 2


def test_validation_happens_in_every_nth_epoch_only_and_the_trainer_is_left_as_it_was() -> None:
    history, losses = MetricHistory(), [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    trainer = fit(Scripted(losses), [ValidateEvery(3), history], 6, val=loader())
    assert [row.get("val/loss") for row in history.rows] == [None, None, 4.0, None, None, 1.0]
    assert trainer.check_val_every_n_epoch == 1


def test_a_last_epoch_without_validation_is_refused() -> None:
    with pytest.raises(UserError, match="leaves the last of 5 epochs out"):
        fit(Plain(), [ValidateEvery(2)], 5, val=loader())
    with pytest.raises(UserError, match="at least 1"):
        ValidateEvery(0)


class Doubled(Callback):
    """Stands for augmentation: what is trained on is not what is evaluated."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch[0] = batch[0] * 2


class Classifier(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)


def test_training_images_are_evaluated_clean_and_in_evaluation_mode() -> None:
    module, history = Classifier(), MetricHistory()
    fit(module, [StepSeed(0), Doubled(), CleanTrainingMetrics(), history], 2, train=loader(shuffle=True), val=loader())
    images, labels = loader().dataset.tensors
    module.eval()
    with torch.no_grad():
        logits = module(images)
    last = history.rows[-1]
    assert last["train/clean_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert last["train/clean_loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_evaluating_them_changes_nothing_in_the_fit() -> None:
    ends = []
    for extra in ([], [CleanTrainingMetrics()]):
        torch.manual_seed(0)
        module = Classifier()
        fit(module, [StepSeed(0), *extra], 3, train=loader(shuffle=True), val=loader())
        ends.append((tensors(module), torch.rand(())))
    assert not changed(ends[0][0], module)
    assert torch.equal(ends[0][1], ends[1][1])
