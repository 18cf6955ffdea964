"""SegmentationModule on composed scenes: what it learns, what it measures, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from quiet_trainer import quiet_trainer

from tl_lightning.data.dense import DenseDataModule
from tl_lightning.errors import UserError
from tl_lightning.tasks.segmentation import SegmentationModule
from tl_lightning.tasks.segmentation_heads import SEGMENTATION_HEADS

BACKBONE = "mobilenet_v3_small"
VOID = 255


@pytest.fixture(scope="module")
def scenes() -> DenseDataModule:
    data = DenseDataModule(
        task="segmentation", train_images=8, val_images=6, test_images=6, image_size=96, batch_size=4
    )
    data.setup()
    return data


def build(head="lraspp", backbone=BACKBONE, classes=11, **options):
    torch.manual_seed(0)
    return SegmentationModule(backbone, classes, head=head, **options)


def first_batch(data):
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


@pytest.mark.parametrize("head", SEGMENTATION_HEADS)
def test_a_few_steps_reduce_the_loss(scenes, head):
    module, batch = build(head), first_batch(scenes)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        loss = module.loss(module(batch["image"]), batch["mask"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("head", SEGMENTATION_HEADS)
def test_a_fit_logs_loss_and_iou(scenes, head):
    module, runner = build(head), quiet_trainer()
    runner.fit(module, scenes)
    assert {"train/loss", "train/pixel_accuracy", "val/loss", "val/miou", "val/pixel_accuracy"} <= set(
        runner.callback_metrics
    )
    tested = runner.test(module, scenes, verbose=False)[0]
    present = module.iou_per_class[~module.iou_per_class.isnan()]
    assert tested["test/miou"] == pytest.approx(present.mean().item(), abs=1e-5)
    classes = runner.predict(module, scenes.val_dataloader())[0]
    assert classes.shape == (6, 96, 96)


@pytest.mark.parametrize("size", [(96, 96), (90, 122)])
@pytest.mark.parametrize(("head", "stride"), [("lraspp", 16), ("deeplabv3", 8), ("fcn", 32)])
def test_logits_have_the_size_of_the_image(head, stride, size):
    module = build(head, output_stride=stride).eval()
    assert module.backbone.strides[-1] == stride
    with torch.no_grad():
        assert module(torch.rand(2, 3, *size)).shape == (2, 11, *size)


def evaluate(scenes, monkeypatch, change):
    """Return the results for predictions that are ``change(mask)``."""
    module = build()
    batches = [scenes.on_after_batch_transfer(batch, 0) for batch in scenes.val_dataloader()]
    masks = {batch["image"].shape: batch["mask"] for batch in batches}

    def predict(image):
        return 20 * F.one_hot(change(masks[image.shape]), 11).permute(0, 3, 1, 2).float()

    monkeypatch.setattr(module, "forward", predict)
    return quiet_trainer().validate(module, scenes, verbose=False)[0], module.iou_per_class


def test_perfect_predictions_have_an_iou_of_one(scenes, monkeypatch):
    result, per_class = evaluate(scenes, monkeypatch, lambda mask: mask)
    assert result["val/miou"] == pytest.approx(1.0)
    assert result["val/pixel_accuracy"] == pytest.approx(1.0)
    assert result["val/loss"] < 1e-6
    present = scenes.label_counts("val") > 0
    assert torch.equal(~per_class.isnan(), present)
    assert (per_class[present] == 1).all()


def test_iou_by_hand(scenes, monkeypatch):
    """All background: its IoU is its share of the pixels, all other classes have 0."""
    result, _ = evaluate(scenes, monkeypatch, torch.zeros_like)
    counts = scenes.label_counts("val").double()
    share = counts[0] / counts.sum()
    assert result["val/pixel_accuracy"] == pytest.approx(share.item(), abs=1e-5)
    assert result["val/miou"] == pytest.approx((share / (counts > 0).sum()).item(), abs=1e-5)


def test_void_pixels_count_nowhere(scenes):
    module, batch = build().eval(), first_batch(scenes)
    mask = batch["mask"].clone()
    mask[:, :48] = VOID
    with torch.no_grad():
        logits = module(batch["image"])
        expected = F.cross_entropy(logits[:, :, 48:], mask[:, 48:])
        assert module.loss(logits, mask) == pytest.approx(expected.item(), rel=1e-5)
        assert module.loss(logits, torch.full_like(mask, VOID)) == 0
    metrics = module.metrics["val"]
    wrong = logits.argmax(1)
    wrong[:, :48] = (wrong[:, :48] + 1) % 11
    metrics.update(wrong, mask)
    reference = module.metrics["test"]
    reference.update(logits.argmax(1), mask)
    assert metrics.compute()["val/miou"] == reference.compute()["test/miou"]


def test_weights_and_smoothing_are_those_of_cross_entropy(scenes):
    weights = [0.1] + [1.0] * 10
    module, batch = build(class_weights=weights, label_smoothing=0.1).eval(), first_batch(scenes)
    mask = batch["mask"].clone()
    mask[0] = VOID
    with torch.no_grad():
        logits = module(batch["image"])
        expected = F.cross_entropy(logits, mask, weight=torch.tensor(weights), ignore_index=VOID, label_smoothing=0.1)
        assert module.loss(logits, mask) == pytest.approx(expected.item(), rel=1e-5)


def test_every_parameter_is_in_one_named_group_and_gets_a_gradient(scenes):
    module, runner = build(), quiet_trainer(limit_val_batches=0)
    runner.fit(module, scenes)
    groups = runner.optimizers[0].param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters())
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_checkpoint_restores_the_module(tmp_path, scenes):
    module, runner = build("fcn", output_stride=8), quiet_trainer(limit_val_batches=0)
    runner.fit(module, scenes)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    image = first_batch(scenes)["image"]
    with torch.no_grad():
        assert torch.equal(module.eval()(image), loaded.eval()(image))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head": "unet"}, "unknown segmentation head 'unet'"),
        ({"classes": 1}, "at least 2 classes"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32"),
        ({"backbone": "densenet121"}, "DenseNet cannot have output_stride 16.*use output_stride=32"),
        ({"backbone": "vit_b_16", "output_stride": 32}, "keeps tokens"),
        ({"class_weights": [1.0]}, "class_weights has 1 values for 11 classes"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie in"),
    ],
)
def test_impossible_values(options, reason):
    with pytest.raises(UserError, match=reason):
        build(**options)


def test_data_of_another_kind_is_refused(scenes):
    with pytest.raises(UserError, match="SegmentationModule has 5 classes, but the data have 11"):
        quiet_trainer().fit(build(classes=5), scenes)
    with pytest.raises(UserError, match="needs batches with 'mask', but this one holds image, boxes"):
        build().training_step({"image": torch.rand(2, 3, 64, 64), "boxes": []}, 0)


def test_cached_activations_are_refused():
    with pytest.raises(UserError, match="train without the cache"):
        build().training_step({"activation": torch.rand(2, 8), "mask": torch.zeros(2, 8, 8)}, 0)
