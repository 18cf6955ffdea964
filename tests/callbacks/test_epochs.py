"""Callbacks about epochs: which are validated, which is kept, how well the training images are known by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fits import Plain, changed, fit, loader, tensors
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tl_lightning import UserError
from tl_lightning.callbacks import (
    BestEpoch,
    CleanTrainingMetrics,
    MetricHistory,
    PreciseBatchNorm,
    StepSeed,
    ValidateEvery,
)


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


def test_a_metric_that_is_not_a_number_is_never_the_best() -> None:
    # Seen to fail with wait_count == 0 as the sign of an improvement: NaN behind the best epoch leaves it at 0.
    module, weights = Scripted([1.0, float("nan")]), Weights()
    trainer = fit(module, [weights, BestEpoch()], 3, val=loader())
    assert len(weights.by_epoch) == 2
    assert not changed(weights.by_epoch[0], module)
    assert trainer.callback_metrics["val/loss"] == 1.0


def test_a_second_fit_knows_nothing_of_the_best_of_the_first() -> None:
    best, weights = BestEpoch(patience=2), Weights()
    fit(Scripted([0.1, 0.2, 0.3]), [best], 3, val=loader())
    module = Scripted([5.0, 4.0, 3.0, 6.0])
    fit(module, [weights, best], 4, val=loader())
    assert len(weights.by_epoch) == 4
    assert not changed(weights.by_epoch[2], module)
    assert (float(best.best_score), best.wait_count, best.stopped_epoch) == (3.0, 1, 0)


class ByValidation(Scripted):
    """Logs the losses that a script names, validation by validation."""

    def on_validation_epoch_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.current = self.losses.pop(0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", 9.0 if self.trainer.sanity_checking else self.current)


def test_the_best_of_several_validations_in_an_epoch_keeps_its_own_metric() -> None:
    # Seen to fail with the metrics taken at the end of the epoch: val/loss was that of its last validation.
    module = ByValidation([1.0, 0.9, 0.8, 0.1, 0.5, float("nan")])
    trainer = fit(module, [BestEpoch(patience=9)], 3, val=loader(), val_check_interval=1)
    assert trainer.callback_metrics["val/loss"] == pytest.approx(0.1)
    assert trainer.callback_metrics["train/epoch"] == 1.0


@pytest.mark.parametrize("callback", [BestEpoch(), PreciseBatchNorm()])
def test_averaged_weights_are_refused(callback: Callback) -> None:
    with pytest.raises(UserError, match="works on the weights in training, but EMAWeightAveraging validates averaged"):
        fit(Plain(), [EMAWeightAveraging(), callback], 1, val=loader())


def test_fast_dev_run_validates_whatever_was_asked() -> None:
    trainer = fit(Plain(), [ValidateEvery(5)], 10, val=loader(), fast_dev_run=True)
    assert "val/loss" in trainer.callback_metrics


class Ordered(Classifier):
    """Notes the batches of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.order.append(float(batch[0].sum()))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", 0.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluating_them_in_mid_epoch_leaves_the_order_of_the_rest(workers: int) -> None:
    # Seen to fail with copy.copy of the loader: its workers, shared, were begun anew and the epoch ended early.
    orders = []
    for extra in ([], [CleanTrainingMetrics()]):
        generator, lasting = torch.Generator().manual_seed(1), {"persistent_workers": True} if workers else {}
        data = loader(shuffle=True, generator=generator, num_workers=workers, **lasting)
        module = Ordered()
        fit(module, extra, 2, train=data, val=loader(6), val_check_interval=1)
        orders.append(module.order)
    assert len(orders[0]) == 6
    assert orders[0] == orders[1]


def test_images_are_converted_to_the_precision_of_the_module() -> None:
    trainer = fit(Classifier(), [CleanTrainingMetrics()], 1, val=loader(), precision="bf16-true")
    assert torch.isfinite(trainer.callback_metrics["train/clean_loss"])


def test_cached_activations_cannot_be_evaluated_clean() -> None:
    class Cached(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch["activation"], batch["label"]), batch_idx)

    data = DataLoader([{"activation": image, "label": label} for image, label in loader().dataset], 6)
    with pytest.raises(UserError, match="CleanTrainingMetrics got cached activations"):
        fit(Cached(), [CleanTrainingMetrics()], 1, train=data, val=data)


def test_a_test_of_a_checkpoint_leaves_the_history_and_a_second_fit_begins_anew(tmp_path: Path) -> None:
    class Tested(Scripted):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            pass

    history, save = MetricHistory(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    module = Tested([3.0, 2.0, 1.0])
    trainer = fit(module, [history, save], 3, val=loader(), enable_checkpointing=True)
    trainer.test(module, loader(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False, weights_only=False)
    assert [row["val/loss"] for row in history.rows] == [3.0, 2.0, 1.0]
    fit(Scripted([5.0]), [history], 1, val=loader())
    assert [row["val/loss"] for row in history.rows] == [5.0]
