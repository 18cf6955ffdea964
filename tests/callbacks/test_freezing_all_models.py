"""Traps 1 and 9 over every torchvision classification model, in a real fit (all but the two largest, 2.5 GB each)."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import CLASSES, fit, identical
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "backbones"))
from models import images

from tl_lightning.backbones import Stages, create_backbone, list_backbones
from tl_lightning.callbacks import FreezeAudit, ProgressiveUnfreezing
from tl_lightning.callbacks.checksums import checksums
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


def sums(net: nn.Module) -> dict[str, int]:
    parameters = dict(net.named_parameters())
    return dict(zip(parameters, checksums(parameters.values()).tolist(), strict=True))


@pytest.mark.parametrize("name", [name for name in list_backbones() if name not in TOO_LARGE])
def test_trap_01_and_09_for_every_model(name: str) -> None:
    torch.manual_seed(0)
    module = Module(name)
    net, stages = module.backbone, Stages(module.backbone)
    groups = stage_param_groups(net, stages, lr=0.1, weight_decay=0.1)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, net.parameters()))

    depth = len(stages) // 2
    stage = {**stages.parameter_stage(), **stages.buffer_stage()}
    named = dict(itertools.chain(net.named_parameters(), net.named_buffers()))
    assert named.keys() == stage.keys()
    frozen = {n: t.detach().clone() for n, t in named.items() if stage[n] < depth}
    before, zero = sums(net), {n for n, p in net.named_parameters() if not p.any()}
    fit(module, [ProgressiveUnfreezing(depth), FreezeAudit(every_n_steps=1)], 1, train=images(name)[None])
    assert frozen
    for n, t in frozen.items():
        assert identical(t, named[n]), n
    unmoved = {n for n, value in sums(net).items() if value == before[n]} - frozen.keys()
    assert not unmoved - zero, f"thawed, but did not move: {sorted(unmoved - zero)[:3]}"
