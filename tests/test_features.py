from __future__ import annotations

import copy
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from tl_lightning.backbones import Stages, create_backbone
from tl_lightning.callbacks import BatchAugmentation, ProgressiveUnfreezing, StepSeed
from tl_lightning.data.datamodule import TransferDataModule
from tl_lightning.errors import UserError
from tl_lightning.features import (
    ActivationCache,
    CachedDataModule,
    PartActivations,
    compute_activations,
    global_average,
    prefix_fingerprint,
    record,
)
from tl_lightning.tasks import TransferModule

IDS = [f"{i:032x}" for i in range(40)]
ROWS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))


class Counter:
    """Computes rows of ``ROWS`` and remembers which."""

    def __init__(self, names: tuple[str, ...] = ("a",)) -> None:
        self.names = names
        self.computed: list[int] = []

    def __call__(self, positions: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
        for some in positions.split(7):
            self.computed += some.tolist()
            yield {name: ROWS[some] * (k + 1) for k, name in enumerate(self.names)}


def collect(cache: ActivationCache, group: str = "g", ids: list[str] = IDS) -> tuple[torch.Tensor | None, list[int]]:
    """Return what the cache gives for one group, and what had to be computed."""
    rows = {i: k for k, i in enumerate(IDS)}
    counter = Counter()
    order = torch.tensor([rows[i] for i in ids])
    found = cache.collect({"a": group}, ids, lambda positions: counter(order[positions]))["a"]
    return (None if found is None else found.all()), counter.computed


@contextmanager
def one_warning(match: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages = [str(w.message) for w in caught]
    assert len(messages) == 1, messages
    assert match in messages[0]
    assert "\n" not in messages[0]


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def files(directory: Path, suffix: str) -> list[Path]:
    return sorted(directory.glob(f"*{suffix}"))


class TestCache:
    @pytest.mark.parametrize("on_disk", [False, True])
    def test_everything_is_computed_once(self, tmp_path, on_disk):
        cache = ActivationCache(tmp_path if on_disk else None)
        first, computed = collect(cache)
        assert torch.equal(first, ROWS)
        assert computed == list(range(40))
        again, computed = collect(cache)
        assert torch.equal(again, ROWS)
        assert computed == []

    @pytest.mark.parametrize("on_disk", [False, True])
    def test_only_new_images_are_computed(self, tmp_path, on_disk):
        cache = ActivationCache(tmp_path if on_disk else None)
        collect(cache, ids=IDS[10:20])
        values, computed = collect(cache, ids=IDS[25:5:-1])
        assert sorted(computed) == [*range(6, 10), *range(20, 26)]
        assert torch.equal(values, ROWS.flip(0)[14:34])
        assert collect(cache, ids=IDS[6:26])[1] == []

    def test_an_image_that_occurs_twice_is_computed_once(self):
        values, computed = collect(ActivationCache(), ids=[IDS[3], IDS[1], IDS[3]])
        assert torch.equal(values, ROWS[[3, 1, 3]])
        assert computed == [3, 1]

    def test_groups_are_apart_and_share_one_pass(self):
        cache = ActivationCache()
        counter = Counter(("a", "b"))
        cache.collect({"a": "one"}, IDS[:10], Counter())
        found = cache.collect({"a": "one", "b": "two"}, IDS, counter)
        assert torch.equal(found["a"].all(), ROWS)
        assert torch.equal(found["b"].all(), 2 * ROWS)
        assert counter.computed == list(range(40))
        assert collect(cache, "one")[1] == collect(cache, "two")[1] == []

    def test_files_serve_a_later_process(self, tmp_path):
        collect(ActivationCache(tmp_path))
        with no_warning():
            values, computed = collect(ActivationCache(tmp_path))
        assert torch.equal(values, ROWS)
        assert computed == []

    @pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float16", 11), ("bfloat16", 8)])
    @pytest.mark.parametrize("memory_bytes", [0, 2**20])
    def test_dtypes(self, tmp_path, dtype, bits, memory_bytes):
        for _ in range(2):
            values, _ = collect(ActivationCache(tmp_path, dtype=dtype, memory_bytes=memory_bytes))
            assert values.dtype == torch.float32
            assert ((values - ROWS).abs() <= ROWS.abs() * 2.0**-bits).all()
        (path,) = files(tmp_path, ".npy")
        assert np.load(path, allow_pickle=False).shape == (40, 5)
        assert collect(ActivationCache(tmp_path, dtype="float32"))[1] == ([] if dtype == "float32" else list(range(40)))

    def test_what_float16_cannot_hold_is_refused(self):
        with pytest.raises(UserError, match="bfloat16"):
            ActivationCache(dtype="float16").collect(
                {"a": "g"}, IDS[:1], lambda p: iter([{"a": torch.full((1, 2), 1e6)}])
            )

    def test_large_results_lie_in_a_temporary_directory(self):
        cache = ActivationCache(memory_bytes=100)
        values, _ = collect(cache)
        assert torch.equal(values, ROWS)
        directory = Path(cache._temporary.name)
        assert len(files(directory, ".npy")) == 1
        assert collect(cache)[1] == []
        del cache
        assert not directory.exists()

    def test_memory_is_bounded_least_recently_used_first(self):
        cache = ActivationCache(memory_bytes=2 * ROWS.nbytes)
        collect(cache, "one")
        collect(cache, "two")
        collect(cache, "one")
        collect(cache, "three")
        assert collect(cache, "one")[1] == []
        assert collect(cache, "two")[1] != []

    def test_disk_is_bounded_least_recently_used_first(self, tmp_path):
        def cache():
            return ActivationCache(tmp_path, max_bytes=int(2.7 * ROWS.nbytes), memory_bytes=0)

        for group in ("one", "two", "one", "three"):
            collect(cache(), group)
            time.sleep(0.02)
        assert sum(p.stat().st_size for p in files(tmp_path, ".npy")) <= 2.7 * ROWS.nbytes
        assert collect(cache(), "one")[1] == []
        assert collect(cache(), "two")[1] != []

    def test_mistakes(self):
        with pytest.raises(UserError, match="bfloat16"):
            ActivationCache(dtype="bfloat")
        with pytest.raises(UserError, match="max_bytes"):
            ActivationCache(max_bytes=-1)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-16])


def rewrite(key: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


@contextmanager
def read_only(directory: str) -> Iterator[None]:
    """Fill a cache, then let nobody write to its directory."""
    collect(ActivationCache(directory), ids=IDS[:20])
    os.chmod(directory, 0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        yield
    finally:
        os.seteuid(user)
        os.chmod(directory, 0o755)


class TestDamage:
    @pytest.mark.parametrize("memory_bytes", [0, 2**20])
    @pytest.mark.parametrize(
        ("suffix", "damage", "reason"),
        [
            (".npy", flip_byte, "checksum"),
            (".npy", truncate, "bytes instead of"),
            (".npy", Path.unlink, "missing"),
            (".json", flip_byte, "not used"),
            (".json", truncate, "not used"),
            (".json", rewrite("dtype", "float16"), "own checksum"),
            (".json", lambda path: path.write_text("[]"), "not used"),
            (".json", lambda path: path.write_bytes(b"\xff\xfe"), "not used"),
        ],
    )
    def test_damaged_files_are_reported_and_made_anew(self, tmp_path, suffix, damage, reason, memory_bytes):
        collect(ActivationCache(tmp_path))
        damage(files(tmp_path, suffix)[0])
        with one_warning(reason):
            values, computed = collect(ActivationCache(tmp_path, memory_bytes=memory_bytes))
        assert torch.equal(values, ROWS)
        assert computed == list(range(40))
        with no_warning():
            assert collect(ActivationCache(tmp_path))[1] == []

    def test_files_of_another_version_are_reported_and_made_anew(self, tmp_path, monkeypatch):
        import tl_lightning

        monkeypatch.setattr(tl_lightning, "__version__", "0.0.1")
        collect(ActivationCache(tmp_path))
        monkeypatch.undo()
        with one_warning("was written by version 0.0.1"):
            assert collect(ActivationCache(tmp_path))[1] == list(range(40))
        assert len(files(tmp_path, ".npy")) == 1

    @pytest.mark.parametrize("memory_bytes", [0, 2**20])
    def test_a_disk_that_fills_up_is_reported_and_leaves_nothing(self, tmp_path, memory_bytes):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # the system then refuses the write in the middle
        try:
            with one_warning("nothing is kept"):
                values, _ = collect(ActivationCache(tmp_path, memory_bytes=memory_bytes))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (values is None) if memory_bytes == 0 else torch.equal(values, ROWS)
        assert files(tmp_path, ".npy") == files(tmp_path, ".tmp") == files(tmp_path, ".json") == []

    @pytest.mark.parametrize("memory_bytes", [0, 2**20])
    def test_a_result_above_the_bound_is_reported(self, tmp_path, memory_bytes):
        with one_warning("pass the bound"):
            values, _ = collect(ActivationCache(tmp_path, max_bytes=100, memory_bytes=memory_bytes))
        assert (values is None) == (memory_bytes == 0)

    @pytest.mark.parametrize("memory_bytes", [0, 2**20])
    def test_a_read_only_directory_is_read_but_not_written(self, memory_bytes):
        with tempfile.TemporaryDirectory() as name, read_only(name):
            with no_warning():
                assert collect(ActivationCache(name, memory_bytes=memory_bytes), ids=IDS[:20])[1] == []
            with one_warning("ermission"):
                values, computed = collect(ActivationCache(name, memory_bytes=memory_bytes))
        assert computed[0] == 20
        assert (values is None) if memory_bytes == 0 else torch.equal(values, ROWS)

    def test_a_directory_that_cannot_be_made_is_reported(self, tmp_path):
        (tmp_path / "file").touch()
        with one_warning("nothing is kept"):
            values, _ = collect(ActivationCache(tmp_path / "file" / "cache"))
        assert torch.equal(values, ROWS)

    def test_an_error_while_computing_leaves_nothing(self, tmp_path):
        def fail(positions):
            yield {"a": ROWS[:7]}
            raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"):
            ActivationCache(tmp_path, memory_bytes=0).collect({"a": "g"}, IDS, fail)
        assert files(tmp_path, ".npy") == files(tmp_path, ".tmp") == files(tmp_path, ".json") == []

    def test_what_dead_writers_left_is_removed(self, tmp_path):
        old, new = tmp_path / "x.123.npy.tmp", tmp_path / "y.123.npy.tmp"
        orphan = tmp_path / "z.123.npy"
        for path in (old, new, orphan):
            path.touch()
        for path in (old, orphan):
            os.utime(path, (time.time() - 7200,) * 2)
        collect(ActivationCache(tmp_path))
        assert not old.exists()
        assert not orphan.exists()
        assert new.exists()


def compute_slowly(directory: Path, log: Path, pause: float) -> None:
    def compute(positions):
        with log.open("a") as file:
            file.write("x")
        for some in positions.split(10):
            time.sleep(pause)
            yield {"a": ROWS[some]}

    found = ActivationCache(directory, memory_bytes=0).collect({"a": "g"}, IDS, compute)["a"]
    assert torch.equal(found.all(), ROWS)


def start(directory: Path, log: Path, pause: float) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=compute_slowly, args=(directory, log, pause))
    process.start()
    return process


class TestProcesses:
    def test_two_processes_compute_once(self, tmp_path):
        both = [start(tmp_path / "cache", tmp_path / "log", 0.1) for _ in range(2)]
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        assert (tmp_path / "log").read_text() == "x"

    def test_a_killed_writer_does_no_harm(self, tmp_path):
        process = start(tmp_path / "cache", tmp_path / "log", 0.5)
        while not files(tmp_path / "cache", ".tmp") and process.is_alive():
            time.sleep(0.02)
        process.kill()
        process.join()
        assert files(tmp_path / "cache", ".tmp")
        assert files(tmp_path / "cache", ".json") == []
        with no_warning():
            values, computed = collect(ActivationCache(tmp_path / "cache"))
        assert torch.equal(values, ROWS)
        assert computed == list(range(40))


def backbone(name: str) -> nn.Module:
    torch.manual_seed(1)
    model = create_backbone(name, "none", 10, dropout=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


class TestExtraction:
    @pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
    def test_activations_are_those_of_the_prefix(self, name):
        model = backbone(name).train()
        before = copy.deepcopy(model.state_dict())
        stages = Stages(model)
        prefix, suffix = stages.split(stages.boundary_before("head"))
        x = torch.rand(40, 3, 64, 64)
        activations = compute_activations(prefix, x)
        assert not activations.requires_grad
        assert all(m.training for m in model.modules())
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        model.eval()
        suffix.eval()
        with torch.no_grad():
            assert torch.allclose(suffix(activations), model(x), atol=1e-4)
        assert torch.equal(activations, compute_activations(prefix, iter(x.split(32))))

    def test_normalisation_comes_first(self):
        prefix = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
        x = torch.rand(4, 3, 2, 2)
        with torch.no_grad():
            expected = prefix((x - 0.5) / 0.2)
        assert torch.allclose(compute_activations(prefix, x, normalise=lambda t: (t - 0.5) / 0.2), expected, atol=1e-5)

    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
    def test_record_gives_every_boundary_of_one_pass(self, name):
        model = backbone(name).eval()
        stages = Stages(model, "boundary")
        chosen = stages.boundaries[:: max(1, len(stages.boundaries) // 8)]
        x = torch.rand(3, 3, 64, 64)
        maps = record(model, chosen, x)
        averages = record(model, [b.name for b in chosen], x, reduce=global_average)
        for boundary in chosen:
            with torch.no_grad():
                expected = stages.split(boundary)[0](x.clone())
            scale = expected.abs().max()
            assert (maps[boundary.name] - expected).abs().max() < 1e-5 * scale
            assert (averages[boundary.name] - global_average(expected)).abs().max() < 1e-5 * scale
            assert averages[boundary.name].ndim == 2

    def test_record_names_near_boundaries(self):
        with pytest.raises(UserError, match="did you mean"):
            record(backbone("resnet18"), ["layer3.0.ad"], torch.rand(1, 3, 32, 32))

    def test_fingerprint_follows_weights_buffers_and_code(self):
        def fingerprint(change=lambda model: None, stage="layer2"):
            model = backbone("resnet18")
            change(model)
            stages = Stages(model)
            return prefix_fingerprint(stages.split(stages.boundary_before(stage))[0])

        same = fingerprint()
        assert fingerprint() == same
        assert fingerprint(lambda m: m.train()) == fingerprint(lambda m: m.eval()) == same
        assert fingerprint(lambda m: m.fc[1].weight.data.zero_()) == same
        changes = [
            lambda m: m.conv1.weight.data[0, 0, 0, 0].add_(1e-6),
            lambda m: m.bn1.running_mean[0].add_(1e-6),
            lambda m: setattr(m.layer1[0].conv1, "stride", (2, 2)),
            lambda m: setattr(m.bn1, "eps", 1e-3),
        ]
        assert len({fingerprint(change) for change in changes} | {same, fingerprint(stage="layer3")}) == 6

    def test_fingerprint_is_the_same_in_another_process(self):
        script = """
        import torch
        from torch import nn
        from tl_lightning.activations.extraction import prefix_fingerprint
        torch.manual_seed(0)
        print(prefix_fingerprint(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish())))
        """
        command = [sys.executable, "-c", textwrap.dedent(script)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        torch.manual_seed(0)
        here = prefix_fingerprint(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish()))
        assert printed.strip() == here


def digits(**options) -> TransferDataModule:
    defaults = {"image_size": 32, "batch_size": 12, "samples_per_class": 4, "val_samples": 20, "test_samples": 20}
    datamodule = TransferDataModule("digits", **{**defaults, **options})
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def task(name: str) -> TransferModule:
    torch.manual_seed(3)
    return TransferModule(backbone(name), 10, lr=2e-3, optimizer="sgd")


def frozen_task(name: str) -> TransferModule:
    module = task(name)
    module.backbone.requires_grad_(False)
    return module


def trainer(*callbacks: Callback, epochs: int = 1, **options) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **options,
    )


def train(module: TransferModule, data, depth: str, *callbacks: Callback, epochs: int = 1) -> dict[str, float]:
    fit = trainer(StepSeed(0), ProgressiveUnfreezing(depth), *callbacks, epochs=epochs)
    fit.fit(module, data)
    return {k: float(v) for k, v in fit.callback_metrics.items()}


def assert_same_weights(one: nn.Module, other: nn.Module, start: nn.Module, tolerance: float = 5e-3) -> None:
    """Compare the change since the start, not the weights, which hardly move."""
    difference = change = 0.0
    pairs = zip(one.state_dict().values(), other.state_dict().values(), start.state_dict().values(), strict=True)
    for a, b, before in pairs:
        difference += float((a.double() - b.double()).square().sum())
        change += float((a.double() - before.double()).square().sum())
    assert change > 0
    assert difference <= tolerance**2 * change


class TestTraining:
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
    def test_cached_training_equals_live_training(self, name, depth, size):
        live, cached, start = task(name), task(name), task(name)
        boundary = cached.stages.boundary_before(cached.stages.depth(depth))
        live_metrics = train(live, digits(image_size=size), depth)
        data = CachedDataModule(digits(image_size=size), cached, boundary)
        cached_metrics = train(cached, data, depth)
        assert_same_weights(live, cached, start)
        for key in ("train/loss", "val/loss", "val/accuracy"):
            assert live_metrics[key] == pytest.approx(cached_metrics[key], rel=2e-3)
        batch = next(iter(data.test_dataloader()))
        images = digits(image_size=size).on_after_batch_transfer(
            next(iter(digits(image_size=size).test_dataloader())), 0
        )
        live.eval()
        cached.eval()
        with torch.no_grad():
            assert torch.allclose(cached.output(batch), cached(images["image"]), atol=1e-4)
            assert torch.allclose(cached.output(batch), live(images["image"]), atol=5e-3)
        assert data.extraction_seconds > 0

    def test_batches_come_in_the_same_order_for_every_epoch(self):
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

    def test_a_run_resumed_in_mid_epoch_goes_on_where_it_was(self, tmp_path):
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

    def test_trials_share_what_they_have_in_common(self):
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

    def test_without_room_activations_are_computed_live(self):
        module = frozen_task("resnet18")
        boundary = module.stages.boundary_before("layer4")
        kept = CachedDataModule(digits(), module, boundary)
        with pytest.warns(UserWarning, match="nothing is kept"):
            loader = CachedDataModule(digits(), module, boundary, ActivationCache(max_bytes=0)).val_dataloader()
        for a, b in zip(kept.val_dataloader(), loader, strict=True):
            assert torch.allclose(a["activation"], b["activation"], atol=1e-5)

    def test_a_ready_prefix_may_be_given(self):
        prefix = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).requires_grad_(False)
        data = CachedDataModule(digits(), prefix, "mine")
        batch = next(iter(data.train_dataloader()))
        plain = digits()
        images = plain.resize(plain.train_set.gather(batch["index"]))
        assert torch.allclose(batch["activation"], prefix.eval()(images), atol=1e-5)

    def test_several_boundaries_of_a_data_module(self):
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

    def test_parameters_that_should_train_are_refused(self):
        module = task("resnet18")
        data = CachedDataModule(digits(), module, module.stages.boundary_before("layer4"))
        with pytest.raises(UserError, match="before 'layer3") as caught:
            train(module, data, "layer2")
        assert "\n" not in str(caught.value)


AUGMENTATION = {"crop_padding": 4, "color": 0.2, "erasing": 0.5, "seed": 5}


class TestViews:
    def test_views_are_the_images_of_the_epochs_of_live_training(self):
        live: list[dict] = []

        class Keep(Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                live.append({k: v.clone() for k, v in batch.items()})

        module, callback = task("resnet18"), BatchAugmentation(**AUGMENTATION)
        train(module, digits(), "head", callback, Keep(), epochs=2)
        boundary = module.stages.boundary_before("head")
        module.backbone.requires_grad_(False)
        data = CachedDataModule(digits(), module, boundary, views=2, augmentation=callback.augmentation)
        loader, served = data.train_dataloader(), []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            served += list(loader)
        prefix = module.stages.split(boundary)[0]
        for one, other in zip(live, served, strict=True):
            assert torch.equal(one["index"], other["index"])
            assert torch.equal(one["label"], other["label"])
            expected = compute_activations(prefix, one["image"], normalise=module.normalise)
            assert torch.allclose(other["activation"], expected, atol=1e-5)

    def test_views_differ_repeat_and_leave_evaluation_alone(self):
        module = frozen_task("resnet18")
        cache = ActivationCache()
        augmentation = BatchAugmentation(**AUGMENTATION).augmentation
        boundary = module.stages.boundary_before("head")

        def loaders(augmentation=augmentation):
            data = CachedDataModule(digits(), module, boundary, cache, views=2, augmentation=augmentation)
            return data.train_dataloader(), data.val_dataloader(), data

        train_loader, val_loader, data = loaders()
        served = []
        for epoch in range(3):
            train_loader.sampler.set_epoch(epoch)
            rows = {
                int(i): a for batch in train_loader for i, a in zip(batch["index"], batch["activation"], strict=True)
            }
            served.append(torch.stack([rows[i] for i in sorted(rows)]))
        assert not torch.allclose(served[0], served[1])
        assert torch.equal(served[0], served[2])
        plain = CachedDataModule(digits(), module, boundary, cache)
        assert torch.equal(next(iter(val_loader))["activation"], next(iter(plain.val_dataloader()))["activation"])
        assert data.extraction_seconds > 0
        assert loaders()[2].extraction_seconds == 0
        assert loaders(BatchAugmentation(**{**AUGMENTATION, "seed": 6}).augmentation)[2].extraction_seconds > 0

    def test_random_augmentation_needs_views(self):
        module = task("resnet18")
        boundary = module.stages.boundary_before("head")
        augmentation = BatchAugmentation().augmentation
        with pytest.raises(UserError, match="views=K"):
            CachedDataModule(digits(), module, boundary, augmentation=augmentation)
        with pytest.raises(UserError, match="random augmentation"):
            CachedDataModule(digits(), module, boundary, views=2)
        with pytest.raises(UserError, match="at least 0"):
            CachedDataModule(digits(), module, boundary, views=-1)

    def test_views_that_do_not_fit_are_refused(self):
        module = task("resnet18")
        data = CachedDataModule(
            digits(), module, module.stages.boundary_before("head"), ActivationCache(max_bytes=0), views=2,
            augmentation=BatchAugmentation().augmentation,
        )  # fmt: skip
        with pytest.warns(UserWarning, match="nothing is kept"), pytest.raises(UserError, match="cannot hold 2 views"):
            data.train_dataloader()
