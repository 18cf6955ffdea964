"""The folded prefix trains what the plain network trains, follows the schedule, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fits import Plain, fit, trainer
from lightning.pytorch.callbacks import Callback

from tl_lightning import TransferDataModule, TransferModule
from tl_lightning.callbacks import BatchAugmentation, FoldedPrefix, FreezeAudit, ProgressiveUnfreezing, StepSeed
from tl_lightning.errors import UserError

# Untrained MobileNets blow up rounding by their many BatchNorm layers over nearly equal activations: trained weights.
NETWORKS = {"efficientnet_lite0": "IMAGENET1K_V1", "resnet18": "none", "shufflenet_v2_x0_5": "none"}


@pytest.fixture(scope="module")
def digits() -> TransferDataModule:
    made = TransferDataModule("digits", image_size=32, batch_size=20, samples_per_class=6, val_samples=40)
    made.setup()
    return made


class Watch(Callback):
    """Notes whether images go through the prefix, and what the network answers to the first of them."""

    def __init__(self) -> None:
        self.folded: list[bool] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.folded.append(pl_module._halves is not None)
        self.losses.append(float(outputs["loss"]))


def train(name: str, data: TransferDataModule, schedule: Any, folded: bool, epochs: int = 2) -> tuple[Any, Watch]:
    torch.manual_seed(0)
    module = TransferModule(name, 10, weights=NETWORKS[name], lr=0.01, optimizer="sgd")
    for norm in module.modules():  # statistics as of a trained network: with those of a new one folding is too easy
        if NETWORKS[name] == "none" and isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    module.double()
    watch = Watch()
    callbacks = [StepSeed(0), ProgressiveUnfreezing(schedule), BatchAugmentation(flip=True, crop_padding=2)]
    callbacks += [FoldedPrefix()] if folded else []
    trainer(epochs, [*callbacks, FreezeAudit(every_n_steps=1), watch]).fit(module, datamodule=data)
    return module, watch


@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_what_the_plain_network_trains(name: str, digits: TransferDataModule) -> None:
    depth = len(TransferModule(name, 10).stages) // 2
    plain, watched = train(name, digits, depth, folded=False)
    folded, watch = train(name, digits, depth, folded=True)
    assert all(watch.folded)
    assert not any(watched.folded)
    assert watch.losses == pytest.approx(watched.losses, rel=1e-6)
    for (key, one), other in zip(plain.state_dict().items(), folded.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7), key


def test_a_thaw_unfolds_and_the_end_of_the_fit_too(digits: TransferDataModule) -> None:
    plain, watched = train("resnet18", digits, {0: "head", 1: "layer4", 2: "none"}, folded=False, epochs=3)
    module, watch = train("resnet18", digits, {0: "head", 1: "layer4", 2: "none"}, folded=True, epochs=3)
    steps = len(digits.train_dataloader())
    assert watch.folded == [True] * 2 * steps + [False] * steps
    assert watch.losses == pytest.approx(watched.losses, rel=1e-6)
    assert module._halves is None
    assert module.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    ("module", "callbacks", "match"),
    [
        (lambda: Plain(), [ProgressiveUnfreezing("head")], "runs in a TransferModule, not in Plain"),
        (lambda: TransferModule("resnet18", 10), [], "folds what ProgressiveUnfreezing freezes"),
        (lambda: TransferModule("resnet18", 10), [ProgressiveUnfreezing("head", bn="train")], "bn='train' trains it"),
    ],
)
def test_what_cannot_be_folded_is_one_line(module: Any, callbacks: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        fit(module(), [*callbacks, FoldedPrefix()])
