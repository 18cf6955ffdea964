"""The traps of progressive unfreezing, each with a test of its name (2, 3, 5 and 7 have files of their own too).

Every test was seen to fail with its guard taken out; the comment in it says what was taken out and what happened.
"""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from fits import (
    CLASSES,
    Plain,
    Recorder,
    ResumableLoader,
    TinyNet,
    adamw,
    changed,
    fit,
    identical,
    loader,
    sgd,
    tensors,
)
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

from tl_lightning.backbones import Stages
from tl_lightning.callbacks import DiscriminativeLR, FreezeAudit, ProgressiveUnfreezing
from tl_lightning.callbacks.frozen import FrozenStages
from tl_lightning.errors import UserError
from tl_lightning.optim import stage_param_groups

SMALL = {
    "tiny": (TinyNet, 8),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=CLASSES), 32),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=CLASSES), 32),
    "shufflenet_v2_x0_5": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES), 32),
}


class WakesEverything(Plain):
    """Calls ``train()`` in the middle of training, as many projects do after a validation of their own."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.eval()
        self.train()


def below(stages: Stages, depth: int) -> set[str]:
    stage = {**stages.parameter_stage(), **stages.buffer_stage()}
    return {f"backbone.{name}" for name, s in stage.items() if s < depth}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("configure", [adamw, sgd])
def test_trap_01_a_frozen_batchnorm_does_not_drift(name: str, configure: Any) -> None:
    # Seen to fail with `hold_in_eval` setting only `training = False`: after train() all running statistics of
    # frozen layers, num_batches_tracked too, had changed. With requires_grad left True the weights changed as well.
    make, pixels = SMALL[name]
    module = WakesEverything(make(), configure)
    stages = Stages(module.backbone)
    depth = len(stages) // 2
    before = tensors(module)
    fit(module, [ProgressiveUnfreezing(depth)], 2, train=loader(pixels=pixels), val=loader(pixels=pixels))
    frozen, moved = below(stages, depth), changed(before, module)
    assert any("num_batches_tracked" in name for name in frozen)
    assert not moved & frozen, sorted(moved & frozen)[:3]
    assert all(name in moved for name in before if name not in frozen)


def test_trap_01_the_frozen_part_computes_the_same_in_training_and_in_evaluation() -> None:
    # Seen to fail with Dropout left in train mode, and with `track_running_stats=False` in place of eval mode.
    outputs: list[Tensor] = []

    class Watches(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            backbone = pl_module.backbone.train()
            images = batch[0]
            stem = backbone.layer1(F.relu(backbone.bn1(backbone.conv1(images))))
            reference = copy.deepcopy(backbone).eval()
            outputs.append(stem - reference.layer1(F.relu(reference.bn1(reference.conv1(images)))))

    fit(Plain(), [ProgressiveUnfreezing("layer2"), Watches()], 1)
    assert len(outputs) == 3
    assert all((o == 0).all() for o in outputs)


def test_trap_02_a_resumed_run_does_not_freeze_again(tmp_path: Path) -> None:
    # Seen to fail without the `_apply` of on_train_start and with the epoch left out of state_dict. Bit for bit, at
    # every place: test_resume.py.
    schedule = {0: "head", 1: "layer2", 2: "none"}
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = Recorder()
    fit(Plain(), [ProgressiveUnfreezing(schedule), save, whole], 4, enable_checkpointing=True)
    for epoch in range(3):
        resumed = Recorder()
        fit(Plain(), [ProgressiveUnfreezing(schedule), resumed], 4, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert min(resumed.rows) == (epoch + 1, 0)
        for key, row in resumed.rows.items():
            assert row["trains"] == whole.rows[key]["trains"]
            assert row["train_mode"] == whole.rows[key]["train_mode"]


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    groups = optimizer.param_groups
    named = [(n, p) for g in groups for n, p in zip(g["param_names"], g["params"], strict=True)]
    return {name: optimizer.state[p]["exp_avg"] for name, p in named}


class FirstBatch(Callback):
    def __init__(self) -> None:
        self.moments: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.moments:
            self.moments = {n: m.clone() for n, m in moments(trainer.optimizers[0]).items()}


@pytest.mark.parametrize("order", ["reversed groups", "reversed parameters", "one group each", "equal shapes swapped"])
def test_trap_04_optimizer_state_is_matched_by_name(order: str, tmp_path: Path) -> None:
    # Seen to fail without `match_state_by_name`: with equal shapes swapped, torch gives the moments of layer1 to layer2
    # and says nothing; with the parameters reversed the first step raises, with other groups the load does.
    def configure(parameters: list[nn.Parameter]) -> Any:
        return torch.optim.AdamW([{"params": parameters[:9]}, {"params": parameters[9:]}], lr=0.01)

    def reordered(parameters: list[nn.Parameter]) -> Any:
        groups = [{"params": parameters[:9]}, {"params": parameters[9:]}]
        if order == "reversed groups":
            groups = groups[::-1]
        elif order == "reversed parameters":
            groups = [{"params": parameters[:9][::-1]}, {"params": parameters[9:][::-1]}]
        elif order == "equal shapes swapped":
            layer1, layer2 = parameters[3:7], parameters[7:11]
            swapped = [*parameters[:3], *layer2, *layer1, *parameters[11:]]
            groups = [{"params": swapped[:9]}, {"params": swapped[9:]}]
        else:
            groups = [{"params": [p]} for p in parameters]
        return torch.optim.AdamW(groups, lr=0.01)

    one_stage = {"attribute": "", "stages": ["backbone"]}  # several would sort the groups
    save = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    callbacks = [ProgressiveUnfreezing(0, **one_stage), save]
    first = fit(Plain(configure=configure), callbacks, 1, enable_checkpointing=True)
    saved = moments(first.optimizers[0])
    seen, path = FirstBatch(), tmp_path / "last.ckpt"
    fit(Plain(configure=reordered), [ProgressiveUnfreezing(0, **one_stage), seen], 2, ckpt_path=path)
    assert saved.keys() == seen.moments.keys()
    assert not identical(saved["backbone.layer1.0.weight"], saved["backbone.layer2.0.weight"])
    assert all(identical(value, seen.moments[name]) for name, value in saved.items())


def test_trap_04_schedulers_follow_groups_in_another_order(tmp_path: Path) -> None:
    # Seen to fail without the reordering in on_train_start: base_lrs were those of the other group.
    def configure(parameters: list[nn.Parameter], swap: bool) -> Any:
        groups = [{"params": parameters[:3], "lr": 0.1}, {"params": parameters[3:], "lr": 0.001}]
        optimizer = torch.optim.AdamW(groups[::-1] if swap else groups)
        return [optimizer], [lr_scheduler.StepLR(optimizer, 1, 0.5)]

    names = ["backbone.conv1.weight", "backbone.layer2.0.weight"]

    def rates(trainer: Any) -> list[tuple[float, float]]:
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        place = [
            next(k for k, g in enumerate(trainer.optimizers[0].param_groups) if n in g["param_names"]) for n in names
        ]
        return [(scheduler.base_lrs[k], trainer.optimizers[0].param_groups[k]["lr"]) for k in place]

    save = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    callbacks = [ProgressiveUnfreezing(0, attribute="", stages=["backbone"])]
    fit(Plain(configure=lambda p: configure(p, False)), [*callbacks, save], 1, enable_checkpointing=True)
    again = fit(Plain(configure=lambda p: configure(p, True)), callbacks, 2, ckpt_path=tmp_path / "last.ckpt")
    assert rates(again) == [(0.1, 0.025), (0.001, 0.00025)]


def test_trap_04_state_of_other_parameters_is_an_error(tmp_path: Path) -> None:
    class Other(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2)

        strict_loading = False

    save = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fit(Plain(), [ProgressiveUnfreezing("head"), save], 1, enable_checkpointing=True)
    with pytest.raises(UserError, match=r"does not fit: it lacks extra\.bias"):
        fit(Other(), [ProgressiveUnfreezing("head")], 2, ckpt_path=tmp_path / "last.ckpt")


class Found(Plain):
    """Has the ``lr`` that the learning-rate finder sets."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = 0.01

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [lr_scheduler.ExponentialLR(optimizer, 0.5)]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("what", ["finder", "swa", "warm-up", "nothing"])
def test_trap_06_the_ratio_between_stages_never_changes(what: str, before: bool, tmp_path: Path) -> None:
    # Seen to fail with the factor multiplied into group["lr"] when the groups are made: the finder and SWA set one
    # rate for all groups, and the ratio was 1.
    other: dict[str, list[Callback]] = {
        "finder": [LearningRateFinder(num_training_steps=16, early_stop_threshold=None)],
        "swa": [StochasticWeightAveraging(0.02, swa_epoch_start=1, annealing_epochs=1)],
        "warm-up": [WarmUp()],
        "nothing": [],
    }
    seen = Recorder()
    mine: list[Callback] = [ProgressiveUnfreezing({0: "head", 1: "none"}), DiscriminativeLR(decay=0.5)]
    callbacks = [*other[what], *mine] if before else [*mine, *other[what]]
    module = Found()
    fit(module, [*callbacks, seen], 3, train=loader(96 if what == "finder" else 18), default_root_dir=tmp_path)
    names = ["conv1", "layer1", "layer2", "fc"]
    for rates in seen.rates.values():
        assert all(rates[name] / rates["fc"] == 0.5 ** (3 - k) for k, name in enumerate(names))
    assert (module.lr != 0.01) == (what == "finder")


class WarmUp(Callback):
    """Sets one rate for all groups by hand, as many training scripts do."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 0.01 * min(1.0, (trainer.global_step + 1) / 4)


def test_trap_06_nothing_thaws_while_the_finder_runs(tmp_path: Path) -> None:
    # Seen to fail with the freezing done in on_fit_start and the finder before it in the list: it trained all stages.
    trained: list[set[str]] = []

    class Watches(Found):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            trained.append({n for n, p in self.named_parameters() if p.requires_grad})
            return super().training_step(batch, batch_idx)

    finder = LearningRateFinder(num_training_steps=6, early_stop_threshold=None)
    fit(Watches(), [finder, ProgressiveUnfreezing("head")], 1, train=loader(48), default_root_dir=tmp_path)
    assert len(trained) == 6 + 8
    assert all(names == {"backbone.fc.weight", "backbone.fc.bias"} for names in trained)


class Updates(Callback):
    """Measures the relative update of a layer in every step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.relative: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before = pl_module.get_parameter(self.name).detach().clone()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        moved = pl_module.get_parameter(self.name).detach() - self.before
        self.relative.append(float(moved.norm() / self.before.norm()))


def test_trap_08_a_thawed_stage_warms_up() -> None:
    # Seen to fail with `_set_rates` left out: the first step after the thaw moved layer2 by 6 % instead of 0.6 %.
    kicks = {}
    for steps in (0, 9):
        torch.manual_seed(0)
        seen = Updates("backbone.layer2.0.weight")
        unfreezing = ProgressiveUnfreezing({0: "head", 1: "none"}, warmup_steps=steps)
        fit(Plain(), [unfreezing, seen], 5)
        assert seen.relative[:3] == [0.0, 0.0, 0.0]
        kicks[steps] = seen.relative[3:]
    assert kicks[9][0] < 0.15 * kicks[0][0]
    assert kicks[9][0] < 0.02 < kicks[0][0]
    assert kicks[9][-1] > 0.3 * kicks[0][-1], "the warm-up never ends"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_trap_08_the_warm_up_counts_optimizer_steps(accumulate: int) -> None:
    seen = Recorder()
    unfreezing = ProgressiveUnfreezing({0: "head", 1: "none"}, warmup_steps=4)
    fit(Plain(), [unfreezing, seen], 3, train=loader(24, 6), accumulate_grad_batches=accumulate)
    steps = 4 // accumulate
    for (epoch, batch), rates in seen.rates.items():
        taken = (epoch - 1) * steps + batch // accumulate
        warmed = min(1.0, (taken + 1) / 5) if epoch else 1.0
        assert rates["layer1"] == pytest.approx(0.01 * warmed, rel=1e-12)
        assert rates["fc"] == 0.01


def test_trap_08_a_cosine_tail_leaves_the_thawed_stage_its_floor() -> None:
    # Seen to fail without FLOOR in `effective_lr`: the last epoch's rate of conv1 was 2 % of the peak.
    def cosine(parameters: list[nn.Parameter]) -> Any:
        optimizer = adamw(parameters)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    seen = Recorder()
    unfreezing = ProgressiveUnfreezing({0: "head", 2: "none"}, lr_floor=0.4)
    fit(Plain(configure=cosine), [unfreezing, DiscriminativeLR(decay=0.5), seen], 3)
    last = [rates for (epoch, _), rates in seen.rates.items() if epoch == 2]
    assert all(rates["conv1"] == pytest.approx(0.01 * 0.4 * 0.125) for rates in last)
    assert last[-1]["fc"] < 0.4 * 0.01, "the head was not thawed and has no floor"


def two_equal_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, CLASSES)
    )


@pytest.mark.parametrize("name", [*SMALL, "two equal norms"])
def test_trap_09_groups_partition_the_parameters_by_identity(name: str) -> None:
    # Seen to fail with parameters compared by value (`torch.equal`) when groups are made: the second fresh BatchNorm
    # was dropped. Over all torchvision models: test_all_models.py.
    model = {**{k: v[0] for k, v in SMALL.items()}, "two equal norms": two_equal_norms}[name]()
    groups = stage_param_groups(model, Stages(model), lr=0.1, weight_decay=0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert len({group["name"] for group in groups}) == len(groups)
    assert [group["stage"] for group in groups] == sorted(group["stage"] for group in groups)


def test_trap_09_groups_of_a_foreign_optimizer_partition_too() -> None:
    done = fit(Plain(two_equal_norms()), [ProgressiveUnfreezing(1)], 1)
    groups = done.optimizers[0].param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in done.lightning_module.parameters())
    for group in groups:
        named = dict(done.lightning_module.named_parameters())
        assert all(named[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))


def test_trap_09_a_stale_gradient_does_not_move_a_frozen_parameter() -> None:
    # Seen to fail without `parameter.grad = None` in FrozenStages.apply: weight decay and momentum moved conv1.
    module = TinyNet()
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    FrozenStages(module, Stages(module)).apply(2)
    before = tensors(module)
    torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1).step()
    assert changed(before, module) == {n for n in before if n.startswith(("layer2.0", "layer2.1", "fc"))} & {
        n for n, _ in module.named_parameters()
    }


class Checkpointed(TinyNet):
    """Recomputes its layers in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2):
            x = checkpoint(layer, x, use_reentrant=False) if self.training else layer(x)
        return self.fc(x.mean(dim=(2, 3)))


def test_trap_10_activation_checkpointing() -> None:
    # Seen to fail (frozen statistics counted two batches a step) with BatchNorm left in train mode. A trained
    # BatchNorm is updated twice by torch's checkpointing; a frozen one must not be at all.
    module = Plain(Checkpointed())
    before = tensors(module)
    audit = FreezeAudit(every_n_steps=1)
    stages = ["conv1", "bn1", "layer1", "layer2", "fc"]
    fit(module, [ProgressiveUnfreezing("layer2", stages=stages), audit], 1)
    moved = changed(before, module)
    assert not {n for n in moved if n.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))}
    assert module.backbone.layer2[1].num_batches_tracked == 6
    fit(module, [ProgressiveUnfreezing("none", stages=stages), audit], 1)
    assert "backbone.layer1.0.weight" in changed(before, module)


@pytest.mark.parametrize("how", ["torch.compile", "without guards", "module.compile"])
def test_trap_10_compiled_modules_follow_a_thaw(how: str) -> None:
    # Seen to fail without `torch.compiler.reset()` where guards are left out for speed: the frozen graph was kept and
    # layer2 got no gradient after its thaw. With all guards in place torch 2.14 compiles anew by itself.
    gradients: list[set[str]] = []

    class Watches(Plain):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            gradients.append({n for n, p in self.named_parameters() if p.grad is not None})

    torch.compiler.reset()
    net = TinyNet()
    if how == "torch.compile":
        module = Watches(torch.compile(net, backend="aot_eager"))
    elif how == "without guards":
        options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        module = Watches(torch.compile(net, backend="aot_eager", options=options))
    else:
        net.compile(backend="aot_eager")
        module = Watches(net)
    fit(module, [ProgressiveUnfreezing({0: "head", 1: "none"}), FreezeAudit()], 2)
    assert all(len(names) == 2 for names in gradients[:3]), "frozen parameters got gradients"
    assert all(len(names) == len(list(net.parameters())) for names in gradients[3:]), "the frozen graph was kept"


def test_trap_10_copies_and_pickles_of_a_frozen_module_stay_frozen() -> None:
    copies: dict[str, nn.Module] = {}

    class Copies(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            copies["deepcopy"] = copy.deepcopy(pl_module.backbone)
            copies["pickle"] = pickle.loads(pickle.dumps(pl_module.backbone))
            buffer = io.BytesIO()
            torch.save(pl_module.backbone, buffer)
            copies["torch.save"] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)

    module = Plain()
    fit(module, [ProgressiveUnfreezing("layer2"), Copies()], 1)
    for made in copies.values():
        made.train()
        assert [m.training for m in (made.bn1, made.layer1[3], made.layer2[3], made)] == [False, False, True, True]
        assert made.bn1.train() is made.bn1
        assert vars(made.bn1)["train"].module is made.bn1
    module.train()
    assert all(m.training for m in module.modules()), "the module is given back as it was"
    assert not any("train" in vars(m) for m in module.modules())


def test_trap_10_a_resumable_loader_is_left_alone() -> None:
    data = ResumableLoader()
    fit(Plain(), [ProgressiveUnfreezing("head", bn="recalibrate")], 1, train=data)
    assert data.position == 3
