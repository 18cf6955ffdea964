"""FreezeAudit notices what is wrong, is silent about what is right, and costs next to nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fits import CLASSES, Plain, TinyNet, fit, loader
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import BackboneFinetuning, Callback
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tl_lightning.callbacks import FreezeAudit, ProgressiveUnfreezing
from tl_lightning.callbacks.checksums import checksums


class Meddles(Callback):
    """Does something to the module in the third step."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 2:
            self.action(pl_module.backbone, optimizer)


def wake_norm(net: TinyNet, optimizer: Any) -> None:
    net.bn1.training = True
    net(torch.rand(4, 3, 8, 8))


def flip_sign_of_zero(net: TinyNet, optimizer: Any) -> None:
    net.bn1.bias.data[0] = -0.0


def replace_buffer(net: TinyNet, optimizer: Any) -> None:
    net.bn1.running_mean = net.bn1.running_mean + 1


def write_behind_the_counter(net: TinyNet, optimizer: Any) -> None:
    net.conv1.weight.data[0, 0, 0, 0] += 1e-7


def decay_all(net: TinyNet, optimizer: Any) -> None:
    """What an optimizer does that decays weights without a look at gradients."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.mul_(0.999)


def thaw(net: TinyNet, optimizer: Any) -> None:
    net.layer1.requires_grad_(True)


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (decay_all, r"frozen parameter 'backbone\.conv1\.weight' \(and 4 more\) changed by step 3, epoch 1"),
        (wake_norm, r"frozen buffer 'backbone\.bn1\.running_mean' \(and 2 more\) changed by step 3, epoch 1"),
        (write_behind_the_counter, r"frozen parameter 'backbone\.conv1\.weight' changed by step 4, epoch 1"),
        (flip_sign_of_zero, r"frozen parameter 'backbone\.bn1\.bias' changed by step 4, epoch 1"),
        (replace_buffer, r"frozen buffer 'backbone\.bn1\.running_mean' changed by step 4, epoch 1"),
        (thaw, r"'backbone\.layer1\.0\.weight' \(and 3 more\) was made trainable"),
    ],
)
def test_what_moves_is_named(action: Any, match: str) -> None:
    callbacks = [ProgressiveUnfreezing("layer2"), Meddles(action), FreezeAudit()]
    with pytest.raises(RuntimeError, match=f"FreezeAudit: .*{match}"):
        fit(Plain(), callbacks, 2, train=loader(12, 6))


def test_checksums_are_compared_every_n_steps_too() -> None:
    callbacks = [ProgressiveUnfreezing("layer2"), Meddles(write_behind_the_counter), FreezeAudit(every_n_steps=1)]
    with pytest.raises(RuntimeError, match="by step 3, epoch 0"):
        fit(Plain(), callbacks, 1, train=loader(36, 6))


def test_a_harmless_write_is_no_alarm() -> None:
    """DDP writes the buffers of rank 0 over equal ones in every step."""

    class Rewrites(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            for buffer in pl_module.buffers():
                buffer.copy_(buffer.clone())

    fit(Plain(), [ProgressiveUnfreezing("layer2"), Rewrites(), FreezeAudit(every_n_steps=2)], 3, train=loader(36, 6))


class Cut(TinyNet):
    """Loses the gradient of what lies before layer2, as reentrant checkpointing behind a frozen stage does."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = checkpoint(self.layer1, x, use_reentrant=True) if self.training else self.layer1(x)
        return self.fc(self.layer2(x).mean(dim=(2, 3)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_thawed_parameter_without_a_gradient_is_named() -> None:
    stages = ["conv1", "bn1", "layer1", "layer2", "fc"]
    unfreezing = ProgressiveUnfreezing("layer1", stages=stages)
    match = r"'backbone\.layer1\.0\.weight' \(and 3 more\) is thawed but got no gradient in epoch 0"
    with pytest.raises(RuntimeError, match=match):
        fit(Plain(Cut()), [unfreezing, FreezeAudit()], 2)
    fit(Plain(Cut()), [unfreezing, FreezeAudit(ignore=["layer1.*"])], 1)


def test_lightnings_backbone_finetuning_is_caught() -> None:
    class Split(Plain):
        def __init__(self) -> None:
            net = TinyNet()
            super().__init__(nn.Sequential(net.conv1, net.bn1, nn.ReLU(), net.layer1, net.layer2))
            self.fc = nn.Linear(4, CLASSES)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.fc(self.backbone(batch[0]).mean(dim=(2, 3))), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    class Conv(Split):
        """With a norm whose scale and shift are frozen but which goes on counting."""

        def on_fit_start(self) -> None:
            self.backbone[1].requires_grad_(False)

    theirs = BackboneFinetuning(unfreeze_backbone_at_epoch=10, train_bn=False, verbose=False)
    with pytest.raises(
        RuntimeError, match=r"frozen buffer 'backbone\.1\.running_mean' \(and 2 more\) changed by step 1"
    ):
        fit(Conv(), [theirs, FreezeAudit()], 1)


def test_without_a_schedule_it_watches_what_does_not_require_a_gradient() -> None:
    module = Plain()
    module.backbone.conv1.requires_grad_(False)
    fit(module, [FreezeAudit(every_n_steps=1)], 2)
    with pytest.raises(RuntimeError, match=r"frozen parameter 'backbone\.conv1\.weight'"):
        fit(module, [Meddles(decay_all), FreezeAudit(every_n_steps=1)], 2)


dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)


@settings(deadline=None)
@given(dtype=dtypes, size=st.integers(1, 50), data=st.data())
def test_any_flipped_bit_changes_the_checksum(dtype: torch.dtype, size: int, data: Any) -> None:
    tensor = torch.zeros(size, dtype=dtype)
    raw = tensor.view(torch.uint8)
    raw.random_(0, 2 if dtype is torch.bool else 256)
    before = checksums([tensor])
    place = data.draw(st.integers(0, raw.numel() - 1))
    bit = 1 if dtype is torch.bool else 1 << data.draw(st.integers(0, 7))
    raw[place] ^= bit
    assert checksums([tensor]) != before
    raw[place] ^= bit
    assert checksums([tensor]) == before


def test_checksums_do_not_depend_on_the_memory_format_and_take_any_shape() -> None:
    tensor = torch.rand(2, 3, 4, 5)
    expected = checksums([tensor])
    assert checksums([tensor.contiguous(memory_format=torch.channels_last)]) == expected
    assert checksums([tensor.flip(0)]) != expected
    assert checksums([torch.zeros(()), torch.zeros(0), torch.ones(2**20 + 3)]).shape == (3,)
    assert checksums([]).tolist() == []
