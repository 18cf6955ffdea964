from __future__ import annotations

import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from quiet_trainer import quiet_trainer
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tl_lightning.analysis import grad_cam
from tl_lightning.callbacks import FreezeAudit, ProgressiveUnfreezing
from tl_lightning.callbacks.gradcam import GradCAMLogger
from tl_lightning.errors import UserError
from tl_lightning.tasks import TransferModule

HOOKS = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs"]


def digits(count: int = 24) -> tuple[Tensor, Tensor]:
    """Real digits of the first four classes, 32 px, three equal channels, in [0, 1]."""
    pixels, labels = load_digits(n_class=4, return_X_y=True)
    images = torch.from_numpy(pixels[:count]).float().view(-1, 1, 8, 8) / 16
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat(1, 3, 1, 1)
    return images, torch.from_numpy(labels[:count])


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*digits()), batch_size=6, shuffle=True)


def block(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride=2, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


class Restless(nn.Module):
    """Draws random numbers of every kind in every forward pass, in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.001 * (torch.rand(()) + np.random.rand() + random.random())  # noqa: NPY002


def module() -> TransferModule:
    torch.manual_seed(0)
    tail = {
        "restless": Restless(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "drop": nn.Dropout(0.3),
        "fc": nn.Linear(16, 4),
    }
    net = nn.Sequential(OrderedDict(conv1=nn.Sequential(*block(3, 8)), conv2=nn.Sequential(*block(8, 16)), **tail))
    return TransferModule(net, 4, lr=1e-2)


def trainer(root: Path, *callbacks: Callback, **options: Any) -> pl.Trainer:
    options = {"accumulate_grad_batches": 2, "logger": TensorBoardLogger(root), "num_sanity_val_steps": 2, **options}
    return quiet_trainer(default_root_dir=root, callbacks=list(callbacks), log_every_n_steps=1, **options)


def everything(net: nn.Module) -> dict[str, Any]:
    """All that a panel might change: modes, hooks, values and versions, gradients, random numbers."""
    return {
        "modes": [m.training for m in net.modules()],
        "hooks": [[list(getattr(m, kind)) for kind in HOOKS] for m in net.modules()],
        "modules": [id(m) for m in net.modules()],
        "tensors": [(id(t), t._version, t.clone()) for t in [*net.parameters(), *net.buffers()]],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grads": [
            (id(p.grad), p.grad._version, p.grad.clone()) if p.grad is not None else None for p in net.parameters()
        ],
        "tensor hooks": [(p._backward_hooks, p._post_accumulate_grad_hooks) for p in net.parameters()],
        "random": (torch.get_rng_state(), np.random.get_state()[1:], random.getstate()),  # noqa: NPY002
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def assert_same(before: Any, after: Any, where: str = "") -> None:
    if isinstance(before, Tensor):
        assert torch.equal(before, after), where
    elif isinstance(before, dict):
        for key in before:
            assert_same(before[key], after[key], key)
    elif isinstance(before, list | tuple):
        assert len(before) == len(after), where
        for a, b in zip(before, after, strict=True):
            assert_same(a, b, where)
    else:
        assert np.array_equal(before, after), where


class PanelInTheMiddle(Callback):
    """Draws a panel at a hook and compares all state around it."""

    def __init__(self, logger: GradCAMLogger, hook: str, freeze: bool = False) -> None:
        self.logger, self.hook, self.freeze, self.calls, self.held = logger, hook, freeze, 0, 0
        setattr(self, hook, self._look)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.freeze:
            pl_module.backbone.requires_grad_(False).eval()
            pl_module.backbone.fc.requires_grad_(True).train()

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.held += any(p.grad is not None and bool(p.grad.any()) for p in pl_module.parameters())
        if self.calls < 3:
            before = everything(pl_module)
            self.logger.log_panel(trainer, pl_module, f"call {self.calls}")
            assert_same(before, everything(pl_module))
            self.calls += 1


@pytest.mark.parametrize("freeze", [False, True], ids=["trainable", "frozen backbone"])
@pytest.mark.parametrize(
    "hook",
    ["on_after_backward", "on_train_batch_start", "on_train_batch_end", "on_validation_end", "on_before_zero_grad"],
)
def test_panel_leaves_no_trace(tmp_path, hook, freeze):
    """Also in mid-accumulation: gradients of the first of two batches are held at most of these moments."""
    probe = PanelInTheMiddle(GradCAMLogger(digits(3)[0], digits(3)[1], every_n_epochs=100), hook, freeze)
    net = module()
    trainer(tmp_path, probe).fit(net, loader(), loader())
    assert probe.calls > 0
    assert (figures(tmp_path)["gradcam"][-1].height) > 0
    if hook != "on_validation_end":
        assert probe.held > 0, "no panel fell between backward and step"


def test_a_run_with_panels_trains_as_one_without(tmp_path):
    weights = []
    images, labels = digits(2)
    for callbacks in (
        [],
        [GradCAMLogger(images, labels)],
        [PanelInTheMiddle(GradCAMLogger(images), "on_after_backward")],
    ):
        net = module()
        pl.seed_everything(1, verbose=False)
        trainer(tmp_path, *callbacks, max_epochs=2).fit(net, loader(), loader())
        weights.append(net.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


def test_state_is_restored_after_an_error(tmp_path):
    net = module().train()
    net.backbone.conv1.eval()
    net(digits(2)[0]).sum().backward()
    before = everything(net)
    with pytest.raises(UserError, match="not maps"):
        grad_cam(net, digits(2)[0], layer="fc", attribute="backbone")
    assert_same(before, everything(net))


def figures(root: Path) -> dict[str, list[Any]]:
    [events] = list(root.rglob("events.out.tfevents.*"))
    accumulator = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    return {tag: accumulator.Images(tag) for tag in accumulator.Tags()["images"]}


def test_panels_before_during_and_after_training(tmp_path):
    logger = GradCAMLogger(*digits(3), every_n_epochs=2, class_names=["zero", "one", "two", "three"])
    net = module()
    trainer(tmp_path, logger, max_epochs=5).fit(net, loader())
    assert list(logger.snapshots) == ["before training", "after 2 epochs", "after 4 epochs", "after training"]
    shown = figures(tmp_path)
    assert [event.step for event in shown["gradcam"]] == [0, 4, 8, 10]
    assert [event.step for event in shown["gradcam/over_time"]] == [10]
    assert shown["gradcam/over_time"][0].height > 2 * shown["gradcam"][0].height
    first, last = (logger.snapshots[t] for t in ("before training", "after training"))
    assert first.layer == last.layer == "conv2"
    assert last.classes.tolist() == digits(3)[1].tolist()
    np.testing.assert_allclose(last.probabilities, net.eval()(digits(3)[0]).softmax(1).detach(), atol=1e-2)
    assert np.abs(first.probabilities - last.probabilities).max() > 0.01


def test_without_labels_the_predicted_class_is_explained_and_shown():
    net = module().eval()
    logger = GradCAMLogger(digits(3)[0])
    logger.snapshots = {"now": logger.explain_images(net)}
    assert (logger.snapshots["now"].classes == logger.snapshots["now"].probabilities.argmax(1)).all()
    captions = [axes.get_xlabel() for axes in logger.figure().axes]
    assert captions[:3] == ["", "", ""]
    assert captions[3].startswith("class ")
    assert captions[3].endswith("%")


def test_captions_tell_right_from_wrong():
    images, _ = digits(2)
    net = module().eval()
    predicted = int(net(images[:1]).argmax())
    logger = GradCAMLogger(images, [predicted, (int(net(images[1:]).argmax()) + 1) % 4], class_names=list("abcd"))
    logger.snapshots = {"now": logger.explain_images(net)}
    captions = [axes.get_xlabel() for axes in logger.figure().axes]
    assert captions[0] == f"true: {'abcd'[predicted]}"
    assert captions[2].startswith(f"✓ {'abcd'[predicted]} ")
    assert captions[3].startswith("✗ ")
    assert f"map: {'abcd'[logger.labels[1]]}" in captions[3]
    assert not any("empty" in caption for caption in captions)
    logger.snapshots["now"].maps[0] = 0
    assert [axes.get_xlabel().endswith("\nempty map") for axes in logger.figure().axes] == [False, False, True, False]


def test_beside_the_freezing_callbacks(tmp_path):
    """The audit raises when anything frozen moves, and panels fall on both sides of a thaw."""
    logger = GradCAMLogger(*digits(2))
    net = module()
    callbacks = [logger, ProgressiveUnfreezing({0: "head", 1: "conv2", 2: "none"}), FreezeAudit(every_n_steps=1)]
    trainer(tmp_path, *callbacks, max_epochs=3).fit(net, loader(), loader())
    assert list(logger.snapshots) == ["before training", "after 1 epoch", "after 2 epochs", "after training"]
    maps = [snapshot.maps for snapshot in logger.snapshots.values()]
    assert np.ptp(maps[0]) > 0
    assert np.abs(maps[2] - maps[3]).max() > 0


def test_named_layer_pickle_and_plain_modules(tmp_path):
    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    logger = pickle.loads(pickle.dumps(GradCAMLogger(*digits(2), target_layer="net.1", attribute="", tag="cam")))
    trainer(tmp_path, logger).fit(Plain(), loader())
    assert logger.snapshots["after training"].layer == "net.1"
    assert set(figures(tmp_path)) == {"cam", "cam/over_time"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": digits(2)[0] * 2}, r"span 0 to 2"),
        ({"images": digits(2)[0] * torch.nan}, r"\[0, 1\]"),
        ({"images": digits(2)[0][0]}, r"\[N, 3, H, W\]"),
        ({"images": digits(24)[0]}, "at most 16 images, not 24"),
        ({"labels": [0]}, "2 images need as many labels"),
        ({"labels": [0, 4], "class_names": list("abcd")}, "span 0 to 4"),
        ({"every_n_epochs": 0}, "every_n_epochs"),
        ({"explain": "truth"}, "unknown class to explain 'truth'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        GradCAMLogger(**{"images": digits(2)[0], **arguments})


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"target_layer": "conv3"}, {}, "unknown target layer 'conv3': did you mean conv2"),
        ({"attribute": "backbon"}, {}, "unknown attribute 'backbon': did you mean backbone"),
        ({}, {"logger": False}, "needs a TensorBoard logger"),
    ],
)
def test_wrong_use_is_named_before_training(tmp_path, arguments, options, message):
    run = trainer(tmp_path, GradCAMLogger(digits(2)[0], **arguments), **options)
    with pytest.raises(UserError, match=message):
        run.fit(module(), loader())
    assert run.global_step == 0


def test_fast_dev_run_draws_and_writes_nothing(tmp_path):
    logger = GradCAMLogger(digits(2)[0])
    trainer(tmp_path, logger, fast_dev_run=True, logger=CSVLogger(tmp_path)).fit(module(), loader())
    assert list(logger.snapshots) == ["before training", "after training"]
    assert not list(tmp_path.rglob("events*"))
