"""What BatchNorm layers of frozen stages do, by named choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fits import CLASSES, Plain, ResumableLoader, TinyNet, changed, fit, identical, loader, tensors
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler

from tl_lightning.backbones import Stages
from tl_lightning.callbacks import FreezeAudit, PreciseBatchNorm, ProgressiveUnfreezing
from tl_lightning.callbacks.frozen import FrozenStages
from tl_lightning.errors import UserError

STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
FROZEN = ("conv1", "bn1", "layer1")  # at depth "layer2"


def moved_below(bn: Any, epochs: int = 2) -> set[str]:
    """Return the tensors of the frozen stages that a fit with this policy changed."""
    module = Plain()
    with torch.no_grad():  # a network that has been trained: statistics are not those of a fresh layer
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.5, 0.5)
                layer.running_var.uniform_(0.5, 2)
    before = tensors(module)
    fit(module, [ProgressiveUnfreezing("layer2", bn=bn), FreezeAudit(every_n_steps=1)], epochs, val=loader())
    names = {name.removeprefix("backbone.") for name in changed(before, module)}
    return {name for name in names if name.startswith(FROZEN)}


def test_eval_changes_nothing() -> None:
    assert moved_below("eval") == set()


def test_affine_only_trains_scale_and_shift() -> None:
    assert moved_below("affine_only") == {"bn1.weight", "bn1.bias", "layer1.1.weight", "layer1.1.bias"}


def test_train_lets_the_statistics_follow_too() -> None:
    norms = ("bn1", "layer1.1")
    assert moved_below("train") == {f"{n}.{t}" for n in norms for t in ("weight", "bias", *STATISTICS)}


def test_recalibrate_changes_the_statistics_alone() -> None:
    assert moved_below("recalibrate") == {f"{n}.{t}" for n in ("bn1", "layer1.1") for t in STATISTICS}


def test_recalibrated_statistics_are_those_of_the_training_images() -> None:
    # Seen to fail with the running momentum of 0.1 in place of cumulative averages.
    module, data = Plain(), ResumableLoader(batches=4)
    conv = module.backbone.conv1
    fit(module, [ProgressiveUnfreezing("head", bn="recalibrate"), FreezeAudit()], 2, train=data)
    activations = [conv(images) for images in data.images]
    mean = torch.stack([a.mean(dim=(0, 2, 3)) for a in activations]).mean(dim=0)
    variance = torch.stack([a.var(dim=(0, 2, 3)) for a in activations]).mean(dim=0)
    assert torch.allclose(module.backbone.bn1.running_mean, mean, atol=1e-6)
    assert torch.allclose(module.backbone.bn1.running_var, variance, atol=1e-6)
    assert module.backbone.bn1.num_batches_tracked == 4
    assert module.backbone.bn1.momentum == 0.1


class Quiet(Plain):
    """Fails if labels are used, and notes the order of the batches of the fit."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("seen", float(batch_idx))
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_step == 0 and batch_idx == 0:
            assert self.backbone.layer2[0].weight.grad is None
        self.order.append(float(batch[0].sum()))
        return loss


@pytest.mark.parametrize("kind", ["shuffled", "workers", "subset", "iterable", "custom"])
def test_recalibration_leaves_the_data_order_as_it_is(kind: str) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(loader().dataset)

    def make() -> Any:
        if kind == "custom":
            return ResumableLoader()
        if kind == "iterable":
            return DataLoader(Stream(), 6)
        if kind == "subset":
            return loader(sampler=SubsetRandomSampler(range(18), torch.Generator().manual_seed(2)))
        workers = {"num_workers": 1, "persistent_workers": True} if kind == "workers" else {}
        return loader(shuffle=kind == "shuffled", generator=torch.Generator().manual_seed(1), **workers)

    orders = []
    for bn in ("eval", "recalibrate"):
        torch.manual_seed(0)
        module = Quiet()
        fit(module, [ProgressiveUnfreezing("head", bn=bn)], 2, train=make())
        orders.append(module.order)
    assert len(orders[0]) == 6
    assert orders[0] == orders[1]


def test_recalibration_uses_no_label() -> None:
    class Blind(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self.backbone(batch[0])
            assert self.trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0, "went on to the loss"
            return nn.functional.cross_entropy(logits, batch[1])

    fit(Blind(), [ProgressiveUnfreezing("head", bn="recalibrate")], 1)


def test_recalibration_skips_a_batch_without_variance_and_needs_some_batch() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.fc = nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.bn(self.a(x)).flatten(1))

    module = Plain(Deep())
    fit(module, [ProgressiveUnfreezing("head", bn="recalibrate")], 1, train=loader(13, 6))
    assert module.backbone.bn.num_batches_tracked == 2
    with pytest.raises(UserError, match="found no batch of training images"):
        fit(Plain(Deep()), [ProgressiveUnfreezing("head", bn="recalibrate")], 1, train=loader(1, 1))


@pytest.mark.parametrize("bn", ["affine_only", "recalibrate", "train"])
def test_a_policy_with_nothing_to_act_on_is_refused(bn: Any) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    with pytest.raises(UserError, match=f"bn='{bn}' has nothing to act on"):
        fit(Plain(plain), [ProgressiveUnfreezing("head", bn=bn)], 1)
    fit(Plain(plain), [ProgressiveUnfreezing("none", bn=bn)], 1)


def test_layers_that_were_replaced_after_set_up_are_frozen_too() -> None:
    """Lightning's sync_batchnorm replaces the layers after ``setup``; here it is done by hand, without a GPU."""

    class Replaces(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            net = pl_module.backbone
            for parent, name, layer in [(net, "bn1", net.bn1), (net.layer1, "1", net.layer1[1])]:
                new = nn.BatchNorm2d(layer.num_features)
                new.load_state_dict(layer.state_dict())
                new.weight, new.bias = layer.weight, layer.bias
                setattr(parent, name, new)

    module = Plain()
    before = tensors(module)
    fit(module, [ProgressiveUnfreezing("layer2"), Replaces(), FreezeAudit(every_n_steps=1)], 1)
    assert not {n for n in changed(before, module) if n.removeprefix("backbone.").startswith(FROZEN)}


def test_a_norm_used_at_two_depths_is_frozen_with_its_tensors() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, CLASSES)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(self.b(self.norm(self.a(x)))).mean(dim=(2, 3)))

    module = Shared()
    frozen = FrozenStages(module, Stages(module))
    frozen.apply(1)
    module.train()
    assert not module.norm.training
    assert {"norm.weight", "norm.bias"} <= frozen.parameters().keys()
    before = module.norm.running_mean.clone()
    module(torch.rand(2, 3, 4, 4))
    assert identical(before, module.norm.running_mean)
    frozen.release()
    assert module.norm.training
    assert isinstance(TinyNet(), nn.Module)


def test_a_step_that_does_not_run_the_frozen_layers_is_refused_and_leaves_their_statistics() -> None:
    # As with activations from a cache. Seen to fail: the statistics were those of a new layer, without a word.
    class Cached(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            features = nn.functional.pad(batch[0].mean(dim=(2, 3)), (0, 1))
            return nn.functional.cross_entropy(self.backbone.fc(features), batch[1])

    module = Cached()
    module.backbone.bn1.running_mean.fill_(0.3)
    before = tensors(module)
    with pytest.raises(UserError, match="runs through all frozen BatchNorm layers: train without the activation cache"):
        fit(module, [ProgressiveUnfreezing("head", bn="recalibrate")], 1)
    assert not changed(before, module)


@pytest.mark.parametrize("estimates", [ProgressiveUnfreezing("head", bn="recalibrate"), PreciseBatchNorm()])
def test_images_that_the_sampler_leaves_out_stay_out_of_the_statistics(estimates: Callback) -> None:
    # Seen to fail with a RandomSampler over the whole data set in place of any sampler.
    read: set[int] = set()

    class Noted(Dataset[Any]):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> Any:
            read.add(index)
            return torch.full((3, 8, 8), float(index)), index % CLASSES

    module = Plain()
    fit(module, [estimates], 1, train=DataLoader(Noted(), 6, sampler=SubsetRandomSampler(range(12))))
    assert read == set(range(12))
    assert module.backbone.bn1.num_batches_tracked == 2


def test_a_training_step_without_the_number_of_the_batch_is_recalibrated_too() -> None:
    class Short(Plain):
        def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
            return nn.functional.cross_entropy(self.backbone(batch[0]), batch[1])

    module = Short()
    fit(module, [ProgressiveUnfreezing("head", bn="recalibrate")], 1)
    assert module.backbone.bn1.num_batches_tracked == 3
