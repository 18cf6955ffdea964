"""DetectionModule on composed scenes: what it learns, what it measures, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from quiet_trainer import quiet_trainer

from tl_lightning.backbones import create_backbone
from tl_lightning.data.dense import DenseDataModule
from tl_lightning.errors import UserError
from tl_lightning.tasks.detection import DetectionModule
from tl_lightning.tasks.detectors import DETECTORS, SameSizeImages

BACKBONE = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def scenes() -> DenseDataModule:
    data = DenseDataModule(train_images=8, val_images=6, test_images=6, image_size=96, batch_size=4)
    data.setup()
    return data


def build(detector="retinanet", backbone=BACKBONE, classes=10, **options):
    torch.manual_seed(0)
    return DetectionModule(backbone, classes, detector=detector, pyramid_channels=32, **options)


def first_batch(data):
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_few_steps_reduce_the_loss(scenes, detector):
    module = build(detector, lr=2e-3, warmup_fraction=0.0, schedule="constant")
    batch = first_batch(scenes)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    targets = [{"boxes": b, "labels": n} for b, n in zip(batch["boxes"], batch["labels"], strict=True)]
    losses = []
    for _ in range(8):
        loss = sum(module(batch["image"], targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_fit_logs_losses_and_coco_metrics(scenes, detector):
    module, runner = build(detector), quiet_trainer()
    runner.fit(module, scenes)
    logged = runner.callback_metrics
    assert {"train/loss", "val/map", "val/map_50", "val/map_75", "val/mar_100"} <= logged.keys()
    terms = [value for name, value in logged.items() if name.startswith("train/") and name != "train/loss"]
    assert sum(terms) == pytest.approx(logged["train/loss"].item(), rel=1e-4)
    tested = runner.test(module, scenes, verbose=False)[0]
    assert 0 <= tested["test/map"] <= tested["test/map_50"] <= 1
    assert set(module.map_per_class) <= set(range(1, 11))
    found = runner.predict(module, scenes.val_dataloader())
    assert {"boxes", "labels", "scores"} == found[0][0].keys()


def test_perfect_predictions_have_a_precision_of_one(scenes, monkeypatch):
    module = build()

    def perfect(image, targets=None):
        batch = by_size[image.shape]
        return [
            {"boxes": b, "labels": n, "scores": torch.ones(len(n))}
            for b, n in zip(batch["boxes"], batch["labels"], strict=True)
        ]

    by_size = {}
    for batch in scenes.val_dataloader():
        batch = scenes.on_after_batch_transfer(batch, 0)
        by_size[batch["image"].shape] = batch
    monkeypatch.setattr(module, "forward", perfect)
    result = quiet_trainer().validate(module, scenes, verbose=False)[0]
    assert result["val/map"] == pytest.approx(1.0)
    assert result["val/map_75"] == pytest.approx(1.0)
    assert set(module.map_per_class.values()) == {1.0}
    for batch in by_size.values():  # wrong classes are found nowhere
        batch["labels"] = [labels % 10 + 1 for labels in batch["labels"]]
    assert quiet_trainer().validate(module, scenes, verbose=False)[0]["val/map"] < 0.3


def test_crowds_are_neither_trained_on_nor_missed(scenes):
    batch = first_batch(scenes)
    crowded = copy.deepcopy(batch)
    for k in range(len(crowded["boxes"])):
        crowded["boxes"][k] = torch.cat([crowded["boxes"][k], torch.tensor([[1.0, 1, 90, 90]])])
        crowded["labels"][k] = torch.cat([crowded["labels"][k], torch.tensor([1])])
        crowded["crowd"][k] = torch.cat([crowded["crowd"][k], torch.tensor([True])])
    losses = []
    for one in (batch, crowded):
        module = build(schedule="constant").train()
        module.log = module.log_dict = lambda *args, **options: None
        losses.append(module.training_step(one, 0).item())
    assert losses[0] == losses[1]
    metric = module.metrics["val"]
    detections = [
        {"boxes": b, "labels": n, "scores": torch.ones(len(n))}
        for b, n in zip(batch["boxes"], batch["labels"], strict=True)
    ]
    module.forward = lambda image, targets=None: detections
    module.validation_step(crowded, 0)
    assert metric.compute()["map"] == pytest.approx(1.0)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("size", [(96, 96), (90, 122)])
def test_boxes_are_in_pixels_of_the_image_given(detector, size):
    """A size that is no multiple of the strides is padded, which must not move or stretch the boxes."""
    module = build(detector, classes=2).eval()
    with torch.no_grad():
        found = module(torch.rand(2, 3, *size))
        features = module.detector.backbone(module.normalise(torch.rand(2, 3, 128, 128)))
    assert all(value.shape[0] == 2 for value in features.values())
    for detections in found:
        boxes = detections["boxes"]
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= size[1]).all()
        assert (boxes[:, 3] <= size[0]).all()


def test_images_are_padded_not_stretched():
    images, targets = torch.rand(2, 3, 90, 122), [{"boxes": torch.rand(1, 4)}] * 2
    listed, same = SameSizeImages(32)(images, targets)
    assert listed.tensors.shape == (2, 3, 96, 128)
    assert torch.equal(listed.tensors[:, :, :90, :122], images)
    assert listed.image_sizes == [(90, 122)] * 2
    assert same is targets


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_anchors_lie_in_steps_of_their_stride(detector):
    """Padding makes the steps whole pixels: an anchor of the last map lies where the map's pixel does."""
    module = build(detector, anchor_scale=2.0).eval()
    model = module.detector
    generator = model.rpn.anchor_generator if detector == "faster_rcnn" else model.anchor_generator
    listed, _ = model.transform(torch.rand(1, 3, 90, 122))
    with torch.no_grad():
        maps = list(model.backbone(listed.tensors).values())
    anchors = generator(listed, maps)[0]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    count = 0
    for found, stride in zip(maps, [4, 8, 16, 32] if detector == "faster_rcnn" else [8, 16, 32], strict=False):
        size = found.shape[2] * found.shape[3] * generator.num_anchors_per_location()[0]
        here = centres[count : count + size]
        assert torch.equal(here.remainder(stride), torch.zeros_like(here))
        assert here.amax(0).tolist() == [(found.shape[3] - 1) * stride, (found.shape[2] - 1) * stride]
        assert (anchors[count : count + size, 2:] - anchors[count : count + size, :2]).prod(
            1
        ).sqrt().median() < 4 * stride
        count += size


def test_an_image_is_normalised_once_and_not_resized(scenes):
    module = build().eval()
    seen = []
    module.backbone.pyramid, original = lambda image: seen.append(image) or original(image), module.backbone.pyramid
    image = first_batch(scenes)["image"]
    module(image)
    expected = (image - module.mean) / module.std
    assert torch.equal(seen[0], expected)


def test_images_without_objects_are_trained_on(scenes):
    module = build().train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    loss = sum(module(torch.rand(2, 3, 96, 96), [empty, empty]).values())
    assert torch.isfinite(loss)


def test_every_parameter_is_in_one_named_group_and_gets_a_gradient(scenes):
    module, runner = build(), quiet_trainer(limit_val_batches=0)
    runner.fit(module, scenes)
    groups = runner.optimizers[0].param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters())
    names = dict(module.named_parameters())
    assert {name for group in groups for name in group["param_names"]} == names.keys()
    assert {group["stage"] for group in groups if group["name"].startswith("detector")} == {len(module.stages)}
    for name, parameter in names.items():
        assert parameter.grad is not None, name
    assert not [name for name in names if "classifier" in name]


def test_the_detector_shares_the_backbone_without_owning_it():
    module = build()
    names = list(module.state_dict())
    assert sum(name.startswith("backbone.") for name in names) > 0
    assert not any(name.startswith("detector.backbone.") and ".neck." not in name for name in names)
    twin = copy.deepcopy(module).eval()
    with torch.no_grad():
        for parameter in twin.backbone.parameters():
            parameter.zero_()
        maps = twin.detector.backbone(torch.rand(1, 3, 96, 96))
        before = module.eval().detector.backbone(torch.rand(1, 3, 96, 96))
    assert all(value.std() < 1e-3 for value in list(maps.values())[:3])  # the copy sees its own backbone
    assert any(value.std() > 1e-3 for value in before.values())


def test_checkpoint_restores_the_module(tmp_path, scenes):
    module, runner = build("ssdlite", lr=0.003), quiet_trainer()
    runner.fit(module, scenes)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    loaded = DetectionModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert loaded.hparams["detector"] == "ssdlite"
    assert loaded.lr == 0.003
    image = first_batch(scenes)["image"]
    with torch.no_grad():
        for one, other in zip(module.eval()(image), loaded.eval()(image), strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


def test_a_module_serves_as_backbone_too(scenes):
    backbone = create_backbone("resnet18")
    module = build(backbone=backbone)
    assert dict(module.backbone.named_parameters())["layer1.0.conv1.weight"] is backbone.layer1[0].conv1.weight
    quiet_trainer(limit_train_batches=1, limit_val_batches=0).fit(module, scenes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"detector": "fasterrcnn"}, "unknown detector 'fasterrcnn': did you mean faster_rcnn"),
        ({"classes": 0}, "at least 1 class"),
        ({"backbone": "vit_b_16"}, "keeps tokens"),
        ({"anchor_scale": 0}, "anchor_scale must be above 0"),
        ({"lr": 0}, "lr must be above 0"),
    ],
)
def test_impossible_values(options, reason):
    with pytest.raises(UserError, match=reason):
        build(**options)
    with pytest.raises(UserError, match="multiple of 32"):
        DetectionModule(BACKBONE, 2, pyramid_channels=100)


def test_data_of_another_kind_is_refused(scenes):
    with pytest.raises(UserError, match="DetectionModule has 5 classes, but the data have 10"):
        quiet_trainer().fit(build(classes=5), scenes)
    with pytest.raises(UserError, match="needs batches with 'boxes', but this one holds image, mask"):
        build().training_step({"image": torch.rand(2, 3, 64, 64), "mask": torch.zeros(2, 64, 64)}, 0)


def test_cached_activations_are_refused():
    with pytest.raises(UserError, match="train without the cache"):
        build().training_step({"activation": torch.rand(2, 8)}, 0)
