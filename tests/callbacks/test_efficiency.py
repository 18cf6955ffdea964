from __future__ import annotations

import math
import sys
import time

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from quiet_trainer import quiet_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tl_lightning.callbacks.efficiency import EfficiencyMonitor, batch_images
from tl_lightning.errors import UserError


class Images(Dataset):
    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        time.sleep(self.pause)
        return {"image": torch.full((3, 8, 8), i / 24), "label": torch.tensor(i % 2)}


class Small(pl.LightningModule):
    """A convolution, a normalisation, dropout and a linear layer; may be slow, or hungry, or fail."""

    def __init__(self, *, slow_steps: int = 0, train_pause=0.0, val_pause=0.0, hunger: int = 0, fail: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.options = (slow_steps, train_pause, val_pause, hunger, fail)
        self.steps = 0

    def forward(self, image):
        return self.head(self.drop(self.norm(self.conv(image)).relu().mean((2, 3))))

    def training_step(self, batch, batch_idx):
        slow_steps, train_pause, _, hunger, fail = self.options
        time.sleep(0.25 if self.steps < slow_steps else train_pause)
        self.steps += 1
        torch.ones(hunger, 2**18)  # MiB of float32
        if fail:
            raise RuntimeError("on purpose")
        return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        time.sleep(self.options[2])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Small, *callbacks: Callback, data: Dataset | None = None, val: bool = False, **options) -> pl.Trainer:
    options = {"max_epochs": 2, "num_sanity_val_steps": 2 if val else 0, "callbacks": list(callbacks), **options}
    trainer = quiet_trainer(**options)
    loader = DataLoader(data or Images(), batch_size=8)
    trainer.fit(module, loader, DataLoader(Images(), batch_size=8) if val else None)
    return trainer


def measure(module: Small, *callbacks: Callback, **options) -> dict[str, float]:
    monitor = EfficiencyMonitor(warmup_steps=options.pop("warmup_steps", 3))
    fit(module, *callbacks, monitor, **options)
    return monitor.summary()


CONV = 2 * 3 * 4 * 9 * 64  # a multiply-add is two operations
HEAD = 2 * 4 * 2


class Freeze(Callback):
    def __init__(self, until: int) -> None:
        self.until = until

    def on_train_epoch_start(self, trainer, module):
        for parameter in [*module.conv.parameters(), *module.norm.parameters()]:
            parameter.requires_grad_(trainer.current_epoch >= self.until)


class TestCounts:
    def test_flops_are_those_of_the_formula(self):
        summary = measure(Small())
        assert summary["forward_flops"] == CONV + HEAD
        assert summary["backward_flops"] == CONV + 2 * HEAD  # the images need no gradient
        assert summary["train_flops"] == 48 * (2 * CONV + 3 * HEAD)

    def test_backward_respects_what_is_frozen(self):
        summary = measure(Small(), Freeze(until=9))
        assert summary["forward_flops"] == CONV + HEAD
        assert summary["backward_flops"] == HEAD
        assert summary["trainable_parameters"] == summary["max_trainable_parameters"] == 10

    def test_a_thaw_is_seen(self):
        summary = measure(Small(), Freeze(until=2), max_epochs=3)
        assert summary["backward_flops"] == CONV + 2 * HEAD
        assert summary["train_flops"] == 48 * (CONV + 2 * HEAD) + 24 * (2 * CONV + 3 * HEAD)
        assert summary["trainable_parameters"] == summary["total_parameters"] == 3 * 4 * 9 + 4 + 8 + 10

    def test_a_refreeze_keeps_the_most(self):
        class Refreeze(Freeze):
            def on_train_epoch_start(self, trainer, module):
                module.conv.requires_grad_(trainer.current_epoch == 0)

        summary = measure(Small(), Refreeze(0))
        assert summary["max_trainable_parameters"] == summary["total_parameters"]
        assert summary["trainable_parameters"] == 18

    def test_steps_and_images(self):
        summary = measure(Small(), accumulate_grad_batches=3, val=True)
        assert summary["optimizer_steps"] == 2
        assert summary["images_seen"] == 48
        assert summary["forward_flops"] == CONV + HEAD

    @pytest.mark.parametrize(
        ("batch", "count"),
        [
            ({"note": "x", "index": torch.zeros(5), "image": torch.zeros(5, 3)}, 5),
            ([torch.zeros(4, 3), torch.zeros(4)], 4),
            (torch.zeros(3, 1), 3),
            ({"scale": torch.tensor(1.0), "pair": (torch.zeros(2), 1)}, 2),
            ("nothing", 0),
        ],
    )
    def test_batch_images(self, batch, count):
        assert batch_images(batch) == count


class TestTime:
    def test_waiting_for_data_counts_and_validation_does_not(self):
        summary = measure(Small(train_pause=0.02, val_pause=0.12), data=Images(pause=0.005), val=True)
        expected = 6 * 0.02 + 48 * 0.005
        assert expected <= summary["train_seconds"] < expected + 0.8
        assert summary["fit_seconds"] > expected + 8 * 0.12

    def test_validation_within_an_epoch_does_not_count(self):
        summary = measure(Small(train_pause=0.02, val_pause=0.12), val=True, val_check_interval=1, max_epochs=1)
        assert 3 * 0.02 <= summary["train_seconds"] < 0.8
        assert summary["images_seen"] == 24

    def test_making_the_validation_loader_does_not_count(self):
        class Data(pl.LightningDataModule):
            extraction_seconds = 1.5

            def train_dataloader(self):
                return DataLoader(Images(), batch_size=8)

            def val_dataloader(self):
                time.sleep(1)
                return DataLoader(Images(), batch_size=8)

        monitor = EfficiencyMonitor()
        trainer = quiet_trainer(callbacks=[monitor])
        trainer.fit(Small(), Data())
        assert monitor.summary()["train_seconds"] < 0.8
        assert monitor.summary()["fit_seconds"] > 1
        assert monitor.summary()["extraction_seconds"] == 1.5

    def test_throughput_leaves_the_warm_up_out(self):
        summary = measure(Small(slow_steps=3, train_pause=0.02))
        assert 120 < summary["images_per_second"] <= 8 / 0.02
        slow = measure(Small(slow_steps=3, train_pause=0.02), warmup_steps=0)
        assert slow["images_per_second"] < 85

    def test_a_run_of_warm_up_only_leaves_the_first_step_out(self):
        summary = measure(Small(slow_steps=1, train_pause=0.02), warmup_steps=99)
        assert 120 < summary["images_per_second"] <= 8 / 0.02

    def test_a_counted_step_is_left_out(self):
        class SlowThaw(Freeze):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                module.steps = 0 if (trainer.current_epoch, batch_idx) == (1, 0) else 9

        summary = measure(Small(slow_steps=1, train_pause=0.02), SlowThaw(until=1))
        assert 100 < summary["images_per_second"] <= 8 / 0.02


@pytest.mark.skipif(sys.platform != "linux", reason="the resident peak can be set back on Linux only")
class TestMemory:
    def test_peak_is_that_of_this_fit(self):
        hungry = measure(Small(hunger=300))
        modest = measure(Small())
        assert 290 <= hungry["memory_increase_mb"] < 400
        assert modest["memory_increase_mb"] < 60
        assert hungry["peak_memory_mb"] - modest["peak_memory_mb"] > 200

    def test_peak_is_plausible_where_it_cannot_be_set_back(self, monkeypatch, tmp_path):
        from tl_lightning.callbacks import peak_memory

        monkeypatch.setattr(peak_memory, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
        locked = measure(Small())
        monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "status")
        elsewhere = measure(Small())
        assert locked["peak_memory_mb"] == pytest.approx(elsewhere["peak_memory_mb"], rel=0.2)
        assert math.isnan(elsewhere["memory_increase_mb"])


class TestSideEffects:
    def test_training_is_the_same_with_and_without(self):
        results = []
        for callbacks in ([], [EfficiencyMonitor()]):
            torch.manual_seed(0)
            module = Small()
            fit(module, *callbacks)
            results.append((module.state_dict(), torch.get_rng_state()))
        (one, state), (other, other_state) = results
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert torch.equal(state, other_state)

    def test_an_error_in_a_counted_step_leaves_no_counter(self):
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(Small(fail=True), EfficiencyMonitor())
        from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

        assert _get_current_dispatch_mode_stack() == []

    def test_a_compiled_module_is_counted(self):
        compiled = []

        def backend(graph, inputs):
            compiled.append(graph)
            return graph

        module = Small()
        module.head = torch.compile(module.head, backend=backend)
        assert measure(module)["forward_flops"] == CONV + HEAD
        assert compiled  # in the steps that are not counted

    def test_a_second_fit_starts_anew(self):
        monitor = EfficiencyMonitor()
        module = Small()
        fit(module, monitor)
        first = monitor.summary()
        fit(module, monitor, max_epochs=1)
        assert monitor.summary()["images_seen"] == 24 == first["images_seen"] / 2


class TestReport:
    def test_loggers_get_the_numbers(self, tmp_path):
        board, table = TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")
        summary = measure(Small(), logger=[board, table])
        events = EventAccumulator(board.log_dir).Reload()
        for name, value in summary.items():
            (event,) = events.Scalars(f"efficiency/{name}")
            assert event.step == 6
            assert event.value == pytest.approx(value, rel=1e-5)
        assert "efficiency/train_seconds" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()

    def test_mistakes(self):
        with pytest.raises(UserError, match="before a fit"):
            EfficiencyMonitor().summary()
        with pytest.raises(UserError, match="warmup_steps"):
            EfficiencyMonitor(warmup_steps=-1)

    def test_a_checkpoint_that_was_only_tested_is_not_added_to_the_next_fit(self, tmp_path):
        class Tested(Small):
            def test_step(self, batch, batch_idx):
                pass

        class Saves(Callback):
            def on_train_epoch_end(self, trainer, module):
                trainer.save_checkpoint(tmp_path / "last.ckpt")

        monitor, data = EfficiencyMonitor(), DataLoader(Images(), batch_size=8)
        trainer = fit(Tested(), monitor, Saves())
        trainer.test(Tested(), data, ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=False)
        fit(Small(), monitor, max_epochs=1)
        assert monitor.summary()["images_seen"] == 24

    def test_a_validation_alone_is_not_measured(self):
        trainer = quiet_trainer(callbacks=[EfficiencyMonitor()])
        trainer.validate(Small(), DataLoader(Images(), batch_size=8), verbose=False)
