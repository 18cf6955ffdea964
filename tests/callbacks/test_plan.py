"""The plan before the run says what the run then does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from fits import CLASSES, Plain, TinyNet, fit, loader, tensors
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import lr_scheduler

from tl_lightning.callbacks import DiscriminativeLR, OnPlateau, ProgressiveUnfreezing
from tl_lightning.errors import UserError
from tl_lightning.flops import flop_counter
from tl_lightning.optim import effective_lrs, lr_multiplier


class Measures(Callback):
    """Measures, in the first batch of every epoch of a real fit, what the plan foretells."""

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, Any]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx:
            return
        net = pl_module.backbone
        self.epochs[trainer.current_epoch] = {
            "parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "rates": effective_lrs(trainer.optimizers[0]),
            "stages": {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad} - {"bn1"},
            "flops": self._backward_flops(net, batch[0]),
            "bytes": self._kept_bytes(net, batch[0]),
        }

    @staticmethod
    def _backward_flops(net: nn.Module, images: torch.Tensor) -> int:
        state = {n: b.clone() for n, b in net.named_buffers()}
        loss = net(images).sum()
        with flop_counter() as counter:
            loss.backward()
        net.zero_grad()
        net.load_state_dict(state, strict=False)
        return counter.get_total_flops()

    @staticmethod
    def _kept_bytes(net: nn.Module, images: torch.Tensor) -> int:
        kept: dict[int, int] = {}
        own = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers(), images]}
        alive = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)
            return tensor

        state = {n: b.clone() for n, b in net.named_buffers()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = net(images).sum()
        net.load_state_dict(state, strict=False)
        del loss
        return sum(kept.values())


NETS = {
    "tiny": (TinyNet, 8, {0: "head", 1: "layer2", 3: "none"}),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=CLASSES), 32, {0: "fc", 2: "layer3", 3: "none"}),
    "mobilenet": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=CLASSES),
        32,
        {0: -1, 1: "features.9", 2: 0},
    ),
}


@pytest.mark.parametrize("bn", ["eval", "affine_only", "train"])
@pytest.mark.parametrize("name", NETS)
def test_the_plan_is_what_a_fit_then_does(name: str, bn: Any) -> None:
    make, pixels, schedule = NETS[name]
    multiplier = lr_multiplier("cosine", 12, 2)

    def configure(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.02)
        scheduler = lr_scheduler.LambdaLR(optimizer, multiplier)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module = Plain(make(), configure)
    unfreezing = ProgressiveUnfreezing(schedule, bn=bn, warmup_steps=5, lr_floor=0.5)
    discriminative = DiscriminativeLR(decay=0.9)
    before = tensors(module)
    plan = unfreezing.plan(
        module,
        4,
        input_size=(3, pixels, pixels),
        lr=0.02,
        multiplier=multiplier,
        steps_per_epoch=3,
        discriminative=discriminative,
    )
    assert all(torch.equal(before[n], t) for n, t in tensors(module).items()), "the plan changed the module"
    assert all(p.requires_grad and m.training for m in module.modules() for p in m.parameters())

    measured = Measures()
    fit(module, [unfreezing, discriminative, measured], 4, train=loader(24, 8, pixels))
    full = measured.epochs[3]
    for row, real in zip(plan.rows, measured.epochs.values(), strict=True):
        assert row.trainable_parameters == real["parameters"]
        assert row.bn == bn
        if bn == "eval":
            owners = {stage.split(".")[0] for stage in row.stages}
            assert owners == real["stages"]
        assert {n: real["rates"][n] for n in row.learning_rates} == pytest.approx(dict(row.learning_rates))
        assert row.backward_share == pytest.approx(real["flops"] / full["flops"], rel=1e-6)
        assert row.activation_share == pytest.approx(real["bytes"] / full["bytes"], rel=0.03)
    assert plan.rows[-1].backward_share == 1


def test_the_table() -> None:
    unfreezing = ProgressiveUnfreezing({0: "head", 2: "layer1", 4: "none"})
    text = str(unfreezing.plan(Plain(), 5, input_size=(3, 8, 8), lr=0.01, discriminative=DiscriminativeLR(decay=0.5)))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:4] == ["epoch", "trains", "parameters", "bn"]
    assert lines[1][:4] == ["0-1", "fc", "15", "(3.4%)"]
    assert lines[2][:4] == ["2-3", "layer1", "to", "fc"]
    assert lines[3][0] == "4"
    assert "layer1=0.0025 layer2=0.005 fc=0.01" in text
    assert "not given" in str(unfreezing.plan(Plain(), 5, input_size=(3, 8, 8)))


def test_parameters_that_would_never_train() -> None:
    for schedule in ({0: "head", 1: "layer2"}, OnPlateau(stop="layer2")):
        with pytest.raises(UserError, match="never trains conv1, layer1"):
            ProgressiveUnfreezing(schedule).plan(Plain(), 3)
        rows = ProgressiveUnfreezing(schedule, allow_never_trained=True).plan(Plain(), 3, input_size=(3, 8, 8)).rows
        assert len(rows) == 3
    ProgressiveUnfreezing("head").plan(Plain(), 3, input_size=(3, 8, 8))


def test_a_plan_refuses_what_the_fit_would() -> None:
    with pytest.raises(UserError, match="past the end of a fit of 3 epochs"):
        ProgressiveUnfreezing({0: "head", 3: "none"}).plan(Plain(), 3)
    with pytest.raises(UserError, match="unknown attribute"):
        ProgressiveUnfreezing(0, attribute="body").plan(Plain(), 3)


def test_a_plan_of_the_backbone_itself_and_one_that_depends_on_training() -> None:
    plan = ProgressiveUnfreezing(OnPlateau("val/loss")).plan(TinyNet(), 2, input_size=(3, 8, 8))
    assert "on plateau (min of val/loss, patience 2, min_delta 0): fc to conv1: thaws depend on training" in str(plan)
    assert plan.total_parameters == sum(p.numel() for p in TinyNet().parameters())


@pytest.mark.parametrize("name", ["inception_v3", "vit_b_16", "swin_t", "densenet121", "googlenet", "maxvit_t"])
def test_plans_of_other_architectures(name: str) -> None:
    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=CLASSES, **options)
    size = 299 if name == "inception_v3" else 224
    rows = ProgressiveUnfreezing({0: "head", 1: "none"}).plan(model, 2, input_size=(3, size, size)).rows
    assert 0 <= rows[0].backward_share < 0.1 < rows[1].backward_share == 1
    assert 0 <= rows[0].activation_share < 0.3
