"""Training on growing images: which side in which epoch, and what is refused."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from fits import Plain, fit, loader
from hypothesis import given
from hypothesis import strategies as st
from quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from tl_lightning.callbacks.progressive_resizing import ProgressiveResizing, growing
from tl_lightning.data import TransferDataModule
from tl_lightning.errors import UserError
from tl_lightning.features import CachedDataModule
from tl_lightning.tasks import TransferModule


class Seeing(Plain):
    """Notes the shapes of what it trains and validates on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list] = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        part = "train" if self.trainer.training else "val"
        images = batch["image"] if isinstance(batch, dict) else batch[0]
        self.seen[part].append((self.current_epoch, tuple(images.shape[-2:])))
        return super().training_step([images, batch["label"] if isinstance(batch, dict) else batch[1]], batch_idx)


def test_each_epoch_trains_at_its_side_and_validates_at_the_full_one():
    module = Seeing()
    fit(module, [ProgressiveResizing({0: 4, 2: 6, 3: 8})], epochs=4, train=loader(6), val=loader(6))
    assert module.seen["train"] == [(0, (4, 4)), (1, (4, 4)), (2, (6, 6)), (3, (8, 8))]
    assert set(module.seen["val"]) == {(epoch, (8, 8)) for epoch in range(4)}


def test_a_dict_batch_shrinks_as_interpolation_does():
    images = torch.rand(4, 3, 16, 16)
    samples = [{"image": image, "label": torch.tensor(0)} for image in images]
    module, callback = Seeing(), ProgressiveResizing({0: 8})
    fit(module, [callback], epochs=1, train=DataLoader(samples, 4))
    assert module.seen["train"] == [(0, (8, 8))]
    batch = {"image": images.contiguous(memory_format=torch.channels_last), "label": torch.zeros(4)}
    callback.on_train_batch_start(pl.Trainer(logger=False, accelerator="cpu"), module, batch, 0)
    expected = torch.nn.functional.interpolate(images, size=8, mode="bilinear", antialias=True)
    torch.testing.assert_close(batch["image"], expected)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert 0 <= batch["image"].min() <= batch["image"].max() <= 1


def test_the_full_side_leaves_the_batch_untouched():
    images = torch.rand(2, 3, 8, 8)
    batch = [images, torch.zeros(2)]
    ProgressiveResizing({0: 8}).on_train_batch_start(pl.Trainer(logger=False, accelerator="cpu"), Seeing(), batch, 0)
    assert batch[0] is images


def test_cached_activations_are_refused():
    images = TransferDataModule("digits", image_size=32, batch_size=8, samples_per_class=4, val_samples=10)
    module = TransferModule("shufflenet_v2_x0_5", 10)
    module.requires_grad_(False)
    cached = CachedDataModule(images, module, module.stages.boundary_before(len(module.stages) - 1))
    trainer = quiet_trainer(callbacks=[ProgressiveResizing({0: 16})])
    with pytest.raises(UserError, match="cached activations"):
        trainer.fit(module, cached)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": torch.rand(1, 3, 8, 8), "boxes": []}, "boxes or masks"),
        ({"image": torch.rand(1, 3, 8, 8), "mask": torch.zeros(1, 8, 8)}, "boxes or masks"),
        ({"image": torch.rand(1, 3, 2, 2)}, "at 4 pixels, but the images have 2"),
        ({"pixels": torch.rand(1, 3, 8, 8)}, "dict with 'image'"),
        (torch.rand(1, 3, 8, 8), "dict with 'image'"),
    ],
)
def test_a_batch_that_cannot_be_resized_is_refused(batch, message):
    with pytest.raises(UserError, match=message):
        ProgressiveResizing({0: 4}).on_train_batch_start(
            pl.Trainer(logger=False, accelerator="cpu"), Seeing(), batch, 0
        )


@pytest.mark.parametrize("sides", [{}, {1: 8}, {0: 0}, {0: 8, -1: 4}])
def test_impossible_sides_are_refused(sides):
    with pytest.raises(UserError, match="epoch 0"):
        ProgressiveResizing(sides)


@given(first=st.integers(8, 64), more=st.integers(0, 200), epochs=st.integers(1, 30), steps=st.integers(1, 8))
def test_growing_sides_end_at_the_last_and_never_shrink(first, more, epochs, steps):
    sides = growing(first, first + more, epochs, steps)
    assert 0 in sides
    assert list(sides) == sorted(sides)
    assert list(sides.values()) == sorted(sides.values())
    assert sides[max(sides)] == first + more
    assert max(sides) < epochs
    if min(steps, epochs) > 1:
        assert sides[0] == first
    between = list(sides.values())[1:-1]
    assert all(side % 8 == 0 or side in (first, first + more) for side in between)


def test_growing_in_three_steps():
    assert growing(64, 128, 6) == {0: 64, 2: 96, 4: 128}


@pytest.mark.parametrize("arguments", [(64, 32, 5), (0, 32, 5), (32, 64, 0), (32, 64, 5, 0)])
def test_sides_that_cannot_grow_are_refused(arguments):
    with pytest.raises(UserError, match="cannot grow"):
        growing(*arguments)
