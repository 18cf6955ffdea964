"""Training on cached activations is training on images."""

from __future__ import annotations

import pytest
import torch
from cached_fits import assert_same_weights, digits, frozen_task, task, train, trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from tl_lightning.callbacks import ProgressiveUnfreezing, StepSeed
from tl_lightning.errors import UserError
from tl_lightning.features import (
    ActivationCache,
    CachedDataModule,
    PartActivations,
    global_average,
    record,
)


@pytest.mark.parametrize(
    ("name", "depth", "size"),
    [
        ("resnet18", "layer4", 32),
        ("efficientnet_lite0", "features.7", 64),  # at 32 px its BatchNorm would see 1 x 1 maps: all rounding
        ("mobilenet_v3_small", "features.9", 32),
        pytest.param("convnext_tiny", "features.7", 32, marks=pytest.mark.slow),
        ("efficientnet_lite0", "head", 32),
    ],
)
def test_cached_training_equals_live_training(name, depth, size):
    live, cached, start = task(name), task(name), task(name)
    boundary = cached.stages.boundary_before(cached.stages.depth(depth))
    live_metrics = train(live, digits(image_size=size), depth)
    data = CachedDataModule(digits(image_size=size), cached, boundary)
    cached_metrics = train(cached, data, depth)
    assert_same_weights(live, cached, start)
    for key in ("train/loss", "val/loss", "val/accuracy"):
        assert live_metrics[key] == pytest.approx(cached_metrics[key], rel=2e-3)
    batch = next(iter(data.test_dataloader()))
    images = digits(image_size=size).on_after_batch_transfer(next(iter(digits(image_size=size).test_dataloader())), 0)
    live.eval()
    cached.eval()
    with torch.no_grad():
        assert torch.allclose(cached.output(batch), cached(images["image"]), atol=1e-4)
        assert torch.allclose(cached.output(batch), live(images["image"]), atol=5e-3)
    assert data.extraction_seconds > 0


def test_batches_come_in_the_same_order_for_every_epoch():
    plain, module = digits(), frozen_task("resnet18")
    cached = CachedDataModule(digits(), module, module.stages.boundary_before("head"))
    for name in ("train", "val", "test"):
        one, other = (getattr(data, f"{name}_dataloader")() for data in (plain, cached))
        assert len(one) == len(other)
        for epoch in (0, 3):
            one.sampler.set_epoch(epoch)
            other.sampler.set_epoch(epoch)
            for a, b in zip(one, other, strict=True):
                assert torch.equal(a["index"], b["index"])
                assert torch.equal(a["label"], b["label"])
                assert "image" not in b
                assert b["activation"].dtype == torch.float32


def test_a_run_resumed_in_mid_epoch_goes_on_where_it_was(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (1, 1):
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole, rest = task("mobilenet_v3_small"), task("mobilenet_v3_small")
    boundary = whole.stages.boundary_before("head")
    train(whole, CachedDataModule(digits(), whole, boundary), "head", Save(), epochs=2)
    resumed = trainer(StepSeed(0), ProgressiveUnfreezing("head"), epochs=2)
    data = CachedDataModule(digits(), rest, boundary)
    resumed.fit(rest, data, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_trials_share_what_they_have_in_common():
    cache = ActivationCache()
    module = frozen_task("resnet18")
    boundary = module.stages.boundary_before("head")

    def seconds(**options):
        data = CachedDataModule(digits(**options), module, boundary, cache)
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            next(iter(loader))
        return data.extraction_seconds

    assert seconds() > 0
    assert seconds() == 0
    assert seconds(samples_per_class=2) == 0
    assert seconds(image_size=40) > 0
    module.backbone.fc[1].weight.data.zero_()
    assert seconds() == 0
    module.backbone.bn1.running_mean.add_(0.01)
    assert seconds() > 0


def test_without_room_activations_are_computed_live():
    module = frozen_task("resnet18")
    boundary = module.stages.boundary_before("layer4")
    kept = CachedDataModule(digits(), module, boundary)
    with pytest.warns(UserWarning, match="nothing is kept"):
        loader = CachedDataModule(digits(), module, boundary, ActivationCache(max_bytes=0)).val_dataloader()
    for a, b in zip(kept.val_dataloader(), loader, strict=True):
        assert torch.allclose(a["activation"], b["activation"], atol=1e-5)


def test_a_ready_prefix_may_be_given():
    prefix = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).requires_grad_(False)
    data = CachedDataModule(digits(), prefix, "mine")
    batch = next(iter(data.train_dataloader()))
    plain = digits()
    images = plain.resize(plain.train_set.gather(batch["index"]))
    assert torch.allclose(batch["activation"], prefix.eval()(images), atol=1e-5)


def test_several_boundaries_of_a_data_module():
    module, data = task("resnet18"), digits()
    names = [module.stages.boundary_before(s).name for s in ("layer2", "layer3", "fc")]
    cache = ActivationCache()
    found = PartActivations(data, module, names, cache, reduce=global_average).part("val")
    images = data.resize(data.val_set.images)
    expected = record(module.backbone, names, images, normalise=module.normalise, reduce=global_average)
    for name in names:
        assert torch.allclose(found[name].gather(torch.arange(20)), expected[name], atol=1e-5)
    again = PartActivations(data, module, names[:1], cache, reduce=global_average)
    again.part("val")
    assert again.seconds == 0


def test_parameters_that_should_train_are_refused():
    module = task("resnet18")
    data = CachedDataModule(digits(), module, module.stages.boundary_before("layer4"))
    with pytest.raises(UserError, match="before 'layer3") as caught:
        train(module, data, "layer2")
    assert "\n" not in str(caught.value)


def test_cached_maps_reach_the_suffix_in_the_memory_format_of_the_module():
    module, seen = task("resnet18"), []
    data = CachedDataModule(digits(), module, module.stages.boundary_before("layer4"))
    module.backbone.layer4[0].conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    train(module, data, "layer4")
    maps = [value for value in seen if isinstance(value, torch.Tensor)]  # tracing calls the hook, too
    assert maps
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in maps)
