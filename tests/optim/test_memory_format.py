"""A run goes on in another memory format as it would have in its own."""

from __future__ import annotations

import pytest
import torch
from quiet_trainer import quiet_trainer
from torch import nn

from tl_lightning.data import TransferDataModule
from tl_lightning.tasks import TransferModule


class Small(nn.Module):
    """A convolution whose memory formats differ, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(8, 10)

    def forward(self, image):
        return self.fc(self.features(image).flatten(1))


def trained(folder, epochs, channels_last, resume=None):
    torch.manual_seed(0)
    module = TransferModule(Small(), 10, lr=0.01, schedule="constant", warmup_fraction=0, channels_last=channels_last)
    data = TransferDataModule("digits", image_size=12, batch_size=8, samples_per_class=8, seed=0)
    trainer = quiet_trainer(max_epochs=epochs, default_root_dir=folder, enable_checkpointing=True, limit_val_batches=0)
    trainer.fit(module, data, ckpt_path=resume, weights_only=None if resume is None else False)
    return module, trainer.checkpoint_callback.best_model_path


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_run_goes_on_in_the_other_memory_format(tmp_path, channels_last):
    whole, _ = trained(tmp_path / "whole", 2, channels_last)
    _, checkpoint = trained(tmp_path / "half", 1, channels_last)
    other, _ = trained(tmp_path / "other", 2, not channels_last, checkpoint)
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=1e-3, atol=1e-4, msg=name)
