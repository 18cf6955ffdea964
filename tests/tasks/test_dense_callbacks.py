"""Freezing, its audit, the efficiency monitor and augmentation in fits of all dense tasks."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from quiet_trainer import quiet_trainer

from tl_lightning.callbacks import (
    DiscriminativeLR,
    EfficiencyMonitor,
    FreezeAudit,
    ProgressiveUnfreezing,
    StepSeed,
)
from tl_lightning.callbacks.dense_augmentation import DenseAugmentation
from tl_lightning.data.dense import DenseDataModule
from tl_lightning.tasks.detection import DetectionModule
from tl_lightning.tasks.segmentation import SegmentationModule

TASKS = ["detection", "segmentation"]


def data_of(task):
    return DenseDataModule(task=task, train_images=8, val_images=4, test_images=2, image_size=64, batch_size=4)


def module_of(task):
    torch.manual_seed(0)
    if task == "detection":
        return DetectionModule("mobilenet_v3_small", 10, pyramid_channels=32)
    return SegmentationModule("mobilenet_v3_small", 11)


def fit(task, *callbacks, epochs=2, resume=None, **options):
    module = module_of(task)
    runner = quiet_trainer(
        max_epochs=epochs,
        enable_checkpointing=any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks),
        callbacks=list(callbacks),
        **options,
    )
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    runner.fit(module, data_of(task), ckpt_path=resume, weights_only=None if resume is None else False)
    return module, before, runner


@pytest.mark.parametrize("task", TASKS)
def test_a_frozen_backbone_stays_bit_identical_and_the_rest_trains(task):
    module, before, _ = fit(task, ProgressiveUnfreezing("all"), FreezeAudit(every_n_steps=1))
    after = module.state_dict()
    for name, tensor in before.items():
        if name.startswith("backbone."):
            assert torch.equal(after[name], tensor), name
    trained = {name for name, _ in module.named_parameters() if not name.startswith("backbone.")}
    moved = [name for name in trained if not torch.equal(after[name], before[name])]
    assert len(moved) > 0.5 * len(trained)  # a map without a matching box has no gradient


@pytest.mark.parametrize("task", TASKS)
def test_a_depth_freezes_the_stages_above_it_alone(task):
    module, before, _ = fit(task, ProgressiveUnfreezing("features.8"), FreezeAudit(every_n_steps=1), epochs=1)
    stage = module.stages.parameter_stage()
    for name, parameter in module.backbone.named_parameters():
        frozen = stage[name] < module.stages.index("features.8")
        assert torch.equal(parameter, before[f"backbone.{name}"]) == frozen, name


@pytest.mark.parametrize("task", TASKS)
def test_stages_thaw_by_schedule_with_rates_by_stage(task):
    freezing = ProgressiveUnfreezing({0: "all", 1: "none"})
    module, before, _ = fit(task, freezing, FreezeAudit(every_n_steps=1), DiscriminativeLR(decay=0.8))
    assert all(p.requires_grad for p in module.parameters())
    moved = [not torch.equal(p, before[f"backbone.{name}"]) for name, p in module.backbone.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize("task", TASKS)
def test_the_plan_counts_what_a_fit_trains(task):
    module = module_of(task)
    plan = ProgressiveUnfreezing({0: "all", 1: "none"}).plan(module, 2, input_size=(3, 64, 64))
    outside = sum(p.numel() for name, p in module.named_parameters() if not name.startswith("backbone."))
    assert [row.trainable_parameters for row in plan.rows] == [outside, sum(p.numel() for p in module.parameters())]


@pytest.mark.parametrize("task", TASKS)
def test_the_monitor_measures_less_work_for_a_frozen_backbone(task):
    full, frozen = EfficiencyMonitor(warmup_steps=0), EfficiencyMonitor(warmup_steps=0)
    fit(task, full, epochs=1)
    fit(task, frozen, ProgressiveUnfreezing("all"), epochs=1)
    assert frozen.summary()["total_parameters"] == full.summary()["total_parameters"]
    assert frozen.summary()["trainable_parameters"] < full.summary()["trainable_parameters"]
    assert frozen.summary()["backward_flops"] < full.summary()["backward_flops"]
    assert frozen.summary()["images_seen"] == 8


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_fixes_the_whole_fit(task):
    runs = [fit(task, StepSeed(0), DenseAugmentation(crop_padding=4, color=0.2), epochs=1)[0] for _ in range(2)]
    for (name, one), other in zip(runs[0].state_dict().items(), runs[1].state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("task", TASKS)
def test_a_run_resumed_in_mid_epoch_agrees_with_one_that_was_never_stopped(task, tmp_path):
    def callbacks():
        checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        return [StepSeed(0), ProgressiveUnfreezing({0: "all", 1: "none"}), DenseAugmentation(), checkpoint]

    whole, _, _ = fit(task, *callbacks(), limit_val_batches=0)
    middle = tmp_path / "step=3.ckpt"  # two steps an epoch
    resumed, _, _ = fit(task, *callbacks(), limit_val_batches=0, resume=middle)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("task", TASKS)
def test_half_precision(task):
    _, _, runner = fit(task, epochs=1, precision="bf16-mixed")
    assert torch.isfinite(runner.callback_metrics["train/loss"])
