"""The clock of training: validation left out, resumed fits go on."""

from __future__ import annotations

import itertools
import time

import torch
from fits import Plain, fit, loader

from tl_lightning.callbacks import EfficiencyMonitor, MetricHistory
from tl_lightning.callbacks.training_clock import NAME, TrainingClock


class Sleeping(Plain):
    """A step takes 20 ms, a validation step 200 ms."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.02 if self.trainer.training else 0.2)
        return super().training_step(batch, batch_idx)


def test_it_counts_training_and_not_validation():
    clock, monitor, history = TrainingClock(), EfficiencyMonitor(), MetricHistory()
    fit(Sleeping(), [clock, monitor, history], epochs=3, train=loader(18), val=loader(12))
    seconds = [row[NAME] for row in history.rows]
    assert len(seconds) == 3
    assert seconds[0] >= 0.06
    assert all(later - earlier >= 0.06 for earlier, later in itertools.pairwise(seconds))
    assert seconds[-1] <= monitor.summary()["train_seconds"] + 0.01
    assert history.rows[-1]["seconds"] - seconds[-1] >= 1.2  # six validation steps


class SlowStart(Plain):
    """The first training step takes half a second, the others 20 ms."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.5 if self.global_step == 0 else 0.02)
        return super().training_step(batch, batch_idx)


def test_a_step_whose_operations_are_counted_enters_with_the_time_of_the_others():
    alone, beside = TrainingClock(), TrainingClock()
    fit(SlowStart(), [alone], epochs=1, train=loader(60))
    fit(SlowStart(), [beside, EfficiencyMonitor()], epochs=1, train=loader(60))
    assert alone.seconds >= 0.68
    assert 0.2 <= beside.seconds < alone.seconds - 0.2


def test_a_resumed_fit_goes_on_where_it_stood(tmp_path):
    first = fit(Sleeping(), [TrainingClock()], epochs=2, train=loader(18))
    first.save_checkpoint(tmp_path / "two.ckpt")
    before = first.callbacks[0].seconds
    clock = TrainingClock()
    fit(Sleeping(), [clock], epochs=3, train=loader(18), ckpt_path=tmp_path / "two.ckpt")
    assert before + 0.06 <= clock.seconds < before + 2


def test_a_second_fit_begins_at_zero():
    clock = TrainingClock()
    fit(Sleeping(), [clock], epochs=4, train=loader(18))
    long = clock.seconds
    fit(Plain(), [clock], epochs=1, train=loader(6))
    assert clock.seconds < long
    assert torch.isfinite(torch.tensor(clock.seconds))


def test_a_test_of_a_checkpoint_leaves_the_clock(tmp_path):
    class Tested(Sleeping):
        def test_step(self, batch, batch_idx):
            pass

    clock, module = TrainingClock(), Tested()
    trainer = fit(module, [clock], epochs=1, train=loader(6))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    clock, module = TrainingClock(), Tested()
    trainer = fit(module, [clock], epochs=3, train=loader(18))
    before = clock.seconds
    trainer.test(module, loader(6), ckpt_path=tmp_path / "one.ckpt", verbose=False, weights_only=False)
    assert clock.seconds == before
