"""What else people put into a Trainer, together with freezing and rates by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fits import Plain, Recorder, TinyNet, adamw, changed, fit, identical, loader, sgd, tensors
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F

from tl_lightning.callbacks import DiscriminativeLR, FreezeAudit, ProgressiveUnfreezing
from tl_lightning.errors import UserError

FROZEN = ("backbone.conv1", "backbone.bn1", "backbone.layer1")


def mine(**options: Any) -> list[Callback]:
    schedule = {0: "head", 1: "layer2"}
    unfreezing = ProgressiveUnfreezing(schedule, allow_never_trained=True, **options)
    return [unfreezing, DiscriminativeLR(decay=0.5), FreezeAudit(every_n_steps=1)]


TRAINERS: dict[str, dict[str, Any]] = {
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "64-true": {"precision": "64-true"},
    "accumulation": {"accumulate_grad_batches": 2},
    "clipping by norm": {"gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    "anomaly detection": {"detect_anomaly": True},
    "validation in mid-epoch": {"val_check_interval": 1},
    "max_steps": {"max_steps": 8},
    "deterministic": {"deterministic": True},
    "overfit_batches": {"overfit_batches": 2},
    "gradient norm tracking": {"inference_mode": False},
}


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("configure", [adamw, sgd])
def test_options_of_the_trainer(name: str, configure: Any) -> None:
    module, seen = Plain(configure=configure), Recorder()
    options = TRAINERS[name]
    dtype = {"64-true": torch.float64}.get(name, torch.float32)
    before = tensors(module.to(dtype))
    epochs = -1 if "max_steps" in options else 3
    fit(module, [*mine(), seen], epochs, val=loader(), **options)
    after = tensors(module)
    moved = {n for n, t in before.items() if not identical(t.to(after[n].dtype), after[n])}
    assert not {n for n in moved if n.startswith(FROZEN)}
    assert {"backbone.layer2.0.weight", "backbone.fc.weight"} <= moved
    assert len(seen.rows[(0, 0)]["trains"]) == 2
    assert len(seen.rows[(1, 0)]["trains"]) == 6


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("swa_epoch_start", [1, 2])
def test_swa_keeps_the_statistics_of_frozen_layers(before: bool, swa_epoch_start: int) -> None:
    # Seen to fail without SwaGuard: running_mean of bn1 was 0 and running_var 1 after the fit.
    module = Plain()
    with torch.no_grad():
        module.backbone.bn1.running_mean.fill_(0.3)
    start = tensors(module)
    swa: list[Callback] = [StochasticWeightAveraging(0.01, swa_epoch_start=swa_epoch_start, annealing_epochs=1)]
    callbacks = [*swa, *mine()] if before else [*mine(), *swa]
    fit(module, callbacks, 4)
    assert not {n for n in changed(start, module) if n.startswith(FROZEN)}
    assert module.backbone.layer2[1].num_batches_tracked == 3, "of the epoch that SWA appends"
    assert float(module.backbone.bn1.running_mean[0]) == pytest.approx(0.3)


def test_swa_with_a_list_of_rates_is_refused() -> None:
    with pytest.raises(UserError, match="give StochasticWeightAveraging one swa_lrs, no list"):
        fit(Plain(), [*mine(), StochasticWeightAveraging([0.1], swa_epoch_start=1)], 3)


@pytest.mark.parametrize("use_buffers", [True, False])
def test_ema(use_buffers: bool, tmp_path: Path) -> None:
    module = Plain()
    start = tensors(module)
    ema = EMAWeightAveraging(decay=0.5, use_buffers=use_buffers)
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    fit(module, [*mine(), ema, save], 3, val=loader(), enable_checkpointing=True)
    assert not {n for n in changed(start, module) if n.startswith(FROZEN)}
    assert "backbone.layer2.0.weight" in changed(start, module)
    resumed = Plain()
    again = [*mine(), EMAWeightAveraging(decay=0.5, use_buffers=use_buffers)]
    fit(resumed, again, 3, val=loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert not {n for n in changed(start, resumed) if n.startswith(FROZEN)}


def test_other_callbacks_of_lightning(tmp_path: Path) -> None:
    module, seen = Plain(), Recorder()
    others = [
        EarlyStopping("val/loss", patience=5),
        GradientAccumulationScheduler({1: 2}),
        LearningRateMonitor(),
        ModelCheckpoint(tmp_path, monitor="val/loss"),
        seen,
    ]
    logger = CSVLogger(tmp_path)
    options = {"enable_checkpointing": True, "logger": logger, "log_every_n_steps": 1}
    fit(module, [*mine(), *others], 3, val=loader(), **options)
    assert len(seen.rows[(1, 0)]["trains"]) == 6
    header = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0]
    assert "lr-AdamW/layer2" in header, "Lightning's monitor shows the base rates, by the names of the groups"
    assert "lr/layer2" in header


@pytest.mark.parametrize("fused", ["fused", "foreach", "capturable", "tensor rate"])
def test_variants_of_optimizers(fused: str) -> None:
    def configure(parameters: list[nn.Parameter]) -> Any:
        if fused == "tensor rate":
            return torch.optim.AdamW(parameters, lr=torch.tensor(0.01), foreach=False)
        return torch.optim.AdamW(parameters, lr=0.01, **({fused: True} if fused != "capturable" else {"amsgrad": True}))

    module = Plain(configure=configure)
    start = tensors(module)
    fit(module, mine(warmup_steps=2), 2)
    assert {n.split(".")[1] for n in changed(start, module)} == {"layer2", "fc"}


OPTIMIZERS = [
    getattr(torch.optim, name)
    for name in ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
]


@pytest.mark.parametrize("optimizer_class", [*OPTIMIZERS, torch.optim.Adafactor], ids=lambda c: c.__name__)
def test_every_optimizer_of_torch_leaves_frozen_parameters_alone(optimizer_class: Any) -> None:
    def configure(parameters: list[nn.Parameter]) -> Any:
        decay = {} if optimizer_class is torch.optim.Rprop else {"weight_decay": 0.1}
        return optimizer_class(parameters, lr=0.01, **decay)

    module = Plain(configure=configure)
    start = tensors(module)
    fit(module, mine(), 3)
    assert {n.split(".")[1] for n in changed(start, module)} == {"layer2", "fc"}


def test_gradient_scaler() -> None:
    """16-bit training skips steps whose gradients are infinite: closure, step and hooks run apart."""
    module = Plain(configure=lambda p: torch.optim.SGD(p, lr=0.1))
    optimizer_steps: list[int] = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            optimizer_steps.append(trainer.global_step)

    from lightning.pytorch.plugins.precision import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    start = tensors(module)
    fit(module, [*mine(), Steps()], 2, plugins=[plugin])
    assert {n.split(".")[1] for n in changed(start, module)} == {"layer2", "fc"}
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_shard_are_refused(strategy: Any) -> None:
    made = object.__new__(strategy)
    unfreezing = ProgressiveUnfreezing("head")
    trainer = type("T", (), {"callbacks": [unfreezing], "strategy": made, "global_step": 0})()
    with pytest.raises(UserError, match=f"not with {strategy.__name__}: use strategy='auto' or 'ddp'"):
        unfreezing.setup(trainer, Plain(), "fit")


@pytest.mark.slow
def test_a_compiled_lightning_module_with_inductor(tmp_path: Path) -> None:
    torch.compiler.reset()
    module = Plain()
    start = tensors(module)
    compiled = torch.compile(module)
    fit(compiled, mine(), 2)
    assert {n.split(".")[1] for n in changed(start, module)} == {"layer2", "fc"}


def test_two_towers_each_with_a_schedule() -> None:
    class Towers(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = TinyNet(), TinyNet()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.left(batch[0]) + self.right(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return adamw(list(self.parameters()))

    module, seen = Towers(), Recorder()
    callbacks = [
        ProgressiveUnfreezing({0: "head", 1: "none"}, attribute="left", warmup_steps=1),
        ProgressiveUnfreezing("layer2", attribute="right"),
        DiscriminativeLR(decay=0.5, attribute="right"),
        FreezeAudit(attribute="left", every_n_steps=1),
        seen,
    ]
    start = tensors(module)
    fit(module, callbacks, 2)
    moved = changed(start, module)
    assert {n.split(".")[1] for n in moved if n.startswith("right")} == {"layer2", "fc"}
    assert {n for n in start if n.startswith("left")} <= moved
    assert len(seen.rates[(0, 0)]) == 8
    assert sorted(seen.rates[(1, 1)].values()) == pytest.approx([0.00125, 0.0025, 0.005] + [0.01] * 5)
