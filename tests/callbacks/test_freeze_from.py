"""Shallow stages train alone: everything from a stage on is frozen too, and gradients pass through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from fits import CLASSES, Plain, TinyNet, changed, fit, loader, sgd, tensors
from lightning.pytorch.callbacks import ModelCheckpoint

from tl_lightning.callbacks import FreezeAudit, ProgressiveUnfreezing
from tl_lightning.errors import UserError
from tl_lightning.optim import effective_lrs


def surgical(schedule: Any = 0, freeze_from: Any = "layer1", **options: Any) -> ProgressiveUnfreezing:
    return ProgressiveUnfreezing(schedule, freeze_from=freeze_from, **options)


def test_only_the_stages_before_it_move() -> None:
    module = Plain(TinyNet(), sgd)
    before = tensors(module)
    fit(module, [surgical(), FreezeAudit(every_n_steps=1)], 2, val=loader())
    assert {name.split(".")[1] for name in changed(before, module)} == {"conv1", "bn1"}
    assert all(p.requires_grad for p in module.parameters())
    assert module.backbone.train().bn1.training


def test_a_window_of_stages_can_move_and_thaw() -> None:
    module = Plain(TinyNet(), sgd)
    seen: dict[int, set[str]] = {}

    class Look(FreezeAudit):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            trains = {n.split(".")[1] for n, p in pl_module.named_parameters() if p.requires_grad}
            seen[trainer.current_epoch] = trains

    fit(module, [surgical({0: "layer1", 1: "none"}, "layer2"), Look(every_n_steps=1)], 2)
    assert seen == {0: {"layer1"}, 1: {"conv1", "bn1", "layer1"}}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_the_plan_counts_what_a_fit_trains(name: str) -> None:
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=CLASSES)
    module = Plain(net, sgd)
    unfreezing = surgical(0, 2)
    row = unfreezing.plan(module, 1, input_size=(3, 32, 32)).rows[0]
    before = tensors(module)
    fit(module, [unfreezing, FreezeAudit(every_n_steps=1)], 1, train=loader(6, 6, pixels=32))
    moved = changed(before, module)
    assert sum(p.numel() for n, p in module.named_parameters() if n in moved) == row.trainable_parameters
    assert len(row.stages) == 2
    assert 0.4 < row.backward_share < 1  # the gradients of the inputs of all that is frozen above remain


def test_a_resumed_run_must_freeze_the_same(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", save_last=True)
    fit(Plain(TinyNet(), sgd), [surgical(), keep], 1, enable_checkpointing=True)
    path = str(next(tmp_path.glob("*.ckpt")))
    with pytest.raises(UserError, match="another freeze_from: layer1 there, layer2 here"):
        fit(Plain(TinyNet(), sgd), [surgical(freeze_from="layer2")], 2, ckpt_path=path)
    whole, resumed = Plain(TinyNet(), sgd), Plain(TinyNet(), sgd)
    whole.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
    before = tensors(whole)
    fit(resumed, [surgical()], 2, ckpt_path=path)
    assert {n.split(".")[1] for n in changed(before, resumed)} == {"conv1", "bn1"}


@pytest.mark.parametrize(
    ("schedule", "freeze_from", "match"),
    [
        ("layer1", "layer1", "leaves nothing to train"),
        ({0: "layer2", 1: "none"}, "layer1", "leaves nothing to train where the schedule freezes the first 2 stages"),
        (0, 0, "leaves nothing to train"),
        (0, "layer9", "layer"),
    ],
)
def test_what_would_train_nothing_is_refused(schedule: Any, freeze_from: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        fit(Plain(TinyNet(), sgd), [surgical(schedule, freeze_from)], 2)


def test_rates_of_the_stages_are_not_touched() -> None:
    module = Plain(TinyNet(), sgd)
    trainer = fit(module, [surgical()], 1)
    assert set(effective_lrs(trainer.optimizers[0]).values()) == {0.05}
