"""Traps 1 and 9 over every torchvision classification model, in real fits (without the two largest, 2.5 GB each)."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import CLASSES, fit, identical, tensors
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "backbones"))
from models import images

from tl_lightning.backbones import Stages, create_backbone, list_backbones
from tl_lightning.callbacks import FreezeAudit, ProgressiveUnfreezing
from tl_lightning.optim import stage_param_groups

pytestmark = pytest.mark.slow

TOO_LARGE = ("vit_h_14", "regnet_y_128gf")


class Module(pl.LightningModule):
    """Wakes every layer in every step; plain SGD with weight decay moves every weight that it steps."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = create_backbone(name, num_classes=CLASSES)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.eval()
        self.train()
        return F.cross_entropy(self.backbone(batch), torch.arange(len(batch)) % CLASSES)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, weight_decay=0.1)


class Compares(Callback):
    """Compares every frozen tensor bit by bit after the epoch in which it was frozen."""

    def __init__(self, before: dict[str, Tensor], stages: Stages, depth: int) -> None:
        stage = itertools.chain(stages.parameter_stage().items(), stages.buffer_stage().items())
        self.before, self.frozen = before, {name for name, s in stage if s < depth}
        self.compared = 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 0:
            now = dict(itertools.chain(pl_module.backbone.named_parameters(), pl_module.backbone.named_buffers()))
            for name in self.frozen:
                assert identical(self.before[name], now[name]), name
                self.compared += 1


@pytest.mark.parametrize("name", [name for name in list_backbones() if name not in TOO_LARGE])
def test_trap_01_and_09_for_every_model(name: str) -> None:
    torch.manual_seed(0)
    module = Module(name)
    net, stages = module.backbone, Stages(module.backbone)
    groups = stage_param_groups(net, stages, lr=0.1, weight_decay=0.1)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, net.parameters()))

    depth, before = len(stages) // 2, tensors(net)
    compares = Compares(before, stages, depth)
    callbacks = [ProgressiveUnfreezing({0: depth, 1: "none"}), FreezeAudit(every_n_steps=1), compares]
    fit(module, callbacks, 2, train=images(name)[None])
    assert compares.compared > 0
    unmoved = [n for n, p in net.named_parameters() if identical(before[n], p)]
    assert all(bool((before[n] == 0).all()) for n in unmoved), f"thawed, but never moved: {unmoved[:3]}"
