"""The callbacks in modules that this project did not write: timm's networks and scheduler, torchgeo's task.

Needs ``pip install timm torchgeo`` and runs with ``pytest -m peers tests/callbacks/test_foreign_modules.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fits import CLASSES, Plain, Recorder, changed, fit, loader, tensors
from torch.utils.data import DataLoader, Dataset

from tl_lightning.backbones import Stages
from tl_lightning.callbacks import DiscriminativeLR, FreezeAudit, ProgressiveUnfreezing

pytestmark = pytest.mark.peers

TIMM = [
    "resnet10t.c3_in1k",
    "mobilenetv3_small_050.lamb_in1k",
    "efficientnet_lite0.ra_in1k",
    "regnetx_002.pycls_in1k",
    "convnext_atto.d2_in1k",
    "densenet121.ra_in1k",
    "test_vit.r160_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
]


def vit_stages(net: Any) -> Stages:
    """timm's vision transformers ask for shapes in forward and cannot be traced."""
    blocks = [f"blocks.{k}" for k in range(len(net.blocks))]
    return Stages.from_modules(net, ["patch_embed", "cls_token", "pos_embed", *blocks, "norm", "head"])


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_in_a_plain_module(name: str) -> None:
    timm = pytest.importorskip("timm")
    size = 160 if "test_vit" in name else 224 if "swin" in name else 64
    options = {} if "densenet" in name else {"drop_path_rate": 0.1}
    net = timm.create_model(name, pretrained=False, num_classes=CLASSES, drop_rate=0.1, **options)
    stages = vit_stages(net) if "test_vit" in name else Stages(net)
    assert 4 <= len(stages) <= 40
    middle = stages.names[len(stages) // 2]
    module, seen = Plain(net, lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1)), Recorder()
    callbacks = [
        ProgressiveUnfreezing({0: "head", 1: middle, 2: "none"}, stages=stages, warmup_steps=1),
        DiscriminativeLR(decay=0.8),
        FreezeAudit(every_n_steps=1),
        seen,
    ]
    data = loader(6, 3, pixels=size)
    start = tensors(module)
    unfreezing = ProgressiveUnfreezing(middle, stages=stages)
    fit(module, [unfreezing, FreezeAudit(every_n_steps=1)], 1, train=data, val=data)
    stage = {**stages.parameter_stage(), **stages.buffer_stage()}
    frozen = {f"backbone.{n}" for n, s in stage.items() if s < len(stages) // 2}
    assert frozen
    assert not changed(start, module) & frozen
    fit(module, callbacks, 3, train=data, val=data)
    assert len(seen.rows[(2, 0)]["trains"]) == len(list(module.parameters()))
    assert {n for n, _ in module.named_parameters()} <= changed(start, module) | {
        n for n in start if n.endswith("relative_position_bias_table")
    }


def test_timm_layer_decay_and_scheduler() -> None:
    """timm's schedulers multiply by the groups' own ``lr_scale``; ours must neither be hit by it nor hit it."""
    timm = pytest.importorskip("timm")
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    class Timm(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = create_optimizer_v2(self.backbone, opt="adamw", lr=0.1, weight_decay=0.1, layer_decay=0.5)
            scheduler = CosineLRScheduler(optimizer, t_initial=4, warmup_t=0)
            return [optimizer], [{"scheduler": scheduler, "interval": "epoch"}]

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.step(epoch=self.current_epoch + 1)

    net = timm.create_model("resnet10t", num_classes=CLASSES)
    reference = Timm(net).configure_optimizers()
    rates = []
    for epoch in range(3):
        rates.append({id(p): g["lr"] for g in reference[0][0].param_groups for p in g["params"]})
        reference[1][0]["scheduler"].step(epoch=epoch + 1)

    seen: list[dict[int, float]] = []

    class Watches(Recorder):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                seen.append({id(p): g["lr"] for g in trainer.optimizers[0].param_groups for p in g["params"]})

    callbacks = [ProgressiveUnfreezing({0: "head", 1: "none"}), FreezeAudit(), Watches()]
    fit(Timm(net), callbacks, 3, train=loader(6, 3, pixels=32))
    assert seen == rates
    assert len(set(rates[0].values())) > 3


class Scenes(Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"image": torch.rand(3, 32, 32, generator=generator), "label": torch.tensor(index % CLASSES)}


def test_torchgeos_classification_task() -> None:
    trainers = pytest.importorskip("torchgeo.trainers")
    task = trainers.ClassificationTask(model="resnet18", in_channels=3, num_classes=CLASSES, lr=0.01, patience=0)
    start, seen = tensors(task), Recorder()
    data = DataLoader(Scenes(), 4)
    callbacks = [
        ProgressiveUnfreezing({0: "head", 1: "layer4", 3: "none"}, attribute="model", warmup_steps=2),
        DiscriminativeLR(decay=0.5, attribute="model"),
        FreezeAudit(attribute="model", every_n_steps=1),
        seen,
    ]
    fit(task, callbacks, 5, train=data, val=data)
    trains = {
        epoch: {n.split(".")[1] for n in row["trains"]} for (epoch, batch), row in seen.rows.items() if batch == 0
    }
    assert trains[0] == trains[0] & {"fc"}
    assert trains[2] == {"layer4", "fc"}
    assert {"conv1", "layer1"} <= trains[4]
    assert {n for n, _ in task.named_parameters()} <= changed(start, task)


def test_torchgeos_own_freezing_is_respected() -> None:
    trainers = pytest.importorskip("torchgeo.trainers")
    task = trainers.ClassificationTask(model="resnet18", in_channels=3, num_classes=CLASSES, freeze_backbone=True)
    start = tensors(task)
    fit(
        task,
        [ProgressiveUnfreezing("none", attribute="model")],
        1,
        train=DataLoader(Scenes(), 4),
        val=DataLoader(Scenes(), 4),
    )
    moved = {n for n in changed(start, task) if "running" not in n and "num_batches" not in n}
    assert moved == {"model.fc.weight", "model.fc.bias"}
