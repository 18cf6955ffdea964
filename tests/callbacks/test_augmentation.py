from __future__ import annotations

import copy
import math
import pickle

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from quiet_trainer import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as V2

from tl_lightning.callbacks.augmentation import BatchAugmentation
from tl_lightning.data.augment import Augmentation, Geometry, Mixing, color
from tl_lightning.data.augment.geometry import identity
from tl_lightning.data.augment.randaugment import COLOR, GEOMETRIC, OPERATIONS, DrawnOperations
from tl_lightning.data.augment.random import BatchPosition
from tl_lightning.data.datamodule import TransferDataModule
from tl_lightning.errors import UserError

HERE = BatchPosition(epoch=1, batch_idx=2)


def images(batch: int = 8, size: tuple[int, int] = (12, 16), channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(0))


class Dictionaries(Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(i)
        return {
            "image": torch.rand(3, 8, 8, generator=generator),
            "label": torch.tensor(i % 3),
            "index": torch.tensor(i),
        }


class Pairs(Dictionaries):
    def __getitem__(self, i: int):
        sample = super().__getitem__(i)
        return sample["image"], sample["label"]


class Probe(pl.LightningModule):
    """Trains a linear layer and keeps every batch that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 3
        self.layer = nn.Linear(3 * 8 * 8, 3)
        self.train_batches: list = []
        self.val_batches: list = []

    def training_step(self, batch, batch_idx):
        self.train_batches.append(copy.deepcopy(batch))
        image = batch["image"] if isinstance(batch, dict) else batch[0]
        return self.layer(image.flatten(1)).square().mean()

    def validation_step(self, batch, batch_idx):
        self.val_batches.append(copy.deepcopy(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(*callbacks: Callback, epochs: int = 1) -> pl.Trainer:
    return quiet_trainer(max_epochs=epochs, callbacks=list(callbacks), num_sanity_val_steps=2)


def fit(callback: Callback, data: Dataset | None = None, *, epochs: int = 2, workers: int = 0) -> Probe:
    module = Probe()
    data = data or Dictionaries()
    loader = DataLoader(data, batch_size=4, num_workers=workers)
    trainer(callback, epochs=epochs).fit(module, loader, DataLoader(data, batch_size=4))
    return module


EVERYTHING = {
    "flip": True,
    "vertical_flip": True,
    "resized_crop": (0.4, 1.0),
    "color": 0.4,
    "randaugment": 2,
    "erasing": 0.5,
}


class TestGeometry:
    def test_flips_are_exact_copies(self):
        x = images()
        flipped = Augmentation(vertical_flip=True, seed=3)(x, HERE)
        kinds = [x, x.flip(-1), x.flip(-2), x.flip(-1, -2)]
        seen = {next(k for k, kind in enumerate(kinds) if torch.equal(kind[i], flipped[i])) for i in range(len(x))}
        assert len(seen) >= 3

    @pytest.mark.parametrize("padding", ["reflection", "zeros"])
    def test_crop_shifts_by_whole_pixels(self, padding):
        x = images(batch=32)
        augmentation = Augmentation(flip=False, crop_padding=3, padding=padding)
        shifts = augmentation.sample_geometry(x.shape, HERE).matrix[:, :2, 2]
        assert shifts.min() == -3
        assert shifts.max() == 3
        mode = {"reflection": "symmetric", "zeros": "constant"}[padding]
        padded = V2.pad(x, [3, 3, 3, 3], padding_mode=mode)
        result = augmentation(x, HERE)
        for i, (dx, dy) in enumerate(shifts.int().tolist()):
            assert torch.equal(result[i], padded[i, :, 3 + dy : 15 + dy, 3 + dx : 19 + dx])

    def test_interpolation_agrees_with_the_exact_copy(self):
        x = images()
        exact = Augmentation(vertical_flip=True, crop_padding=3).sample_geometry(x.shape, HERE)
        interpolated = Geometry(exact.matrix, exact.padding, aligned=False)
        assert torch.allclose(exact.apply_image(x), interpolated.apply_image(x), atol=1e-5)

    def test_resized_crop_shows_the_sampled_share(self):
        x = images(batch=256, size=(64, 64))
        matrix = Augmentation(flip=False, resized_crop=(0.25, 0.5)).sample_geometry(x.shape, HERE).matrix
        area = matrix[:, 0, 0] * matrix[:, 1, 1]
        assert area.min() >= 0.25 - 1e-6
        assert area.max() <= 0.5 + 1e-6
        assert area.std() > 0.05
        corners = torch.tensor([[-32.0, -32.0, 1], [32.0, 32.0, 1]]) @ matrix.transpose(1, 2)
        assert corners.abs().max() <= 32 + 1e-4

    def test_a_map_by_hand_turns_the_image(self):
        x = images(size=(9, 9))
        matrix = identity(8)
        matrix[:, :2, :2] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # the output at (x, y) shows the input at (y, -x)
        assert torch.allclose(Geometry(matrix).apply_image(x), x.rot90(-1, (-2, -1)), atol=1e-5)

    @pytest.mark.parametrize("name", GEOMETRIC)
    def test_geometric_randaugment_matches_torchvision(self, name):
        x = images(size=(331, 331))
        operation = torch.full((1, 8), OPERATIONS.index(name))
        ours = DrawnOperations(operation, torch.ones(1, 8), strength=0.5).matrix(331, 331)
        slope = math.degrees(math.atan(0.15))
        expected = {
            "rotate": {"angle": 15.0},
            "shear_x": {"shear": [slope, 0.0]},
            "shear_y": {"shear": [0.0, slope]},
            "translate_x": {"translate": [-75, 0]},
            "translate_y": {"translate": [0, -75]},
        }[name]
        arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **expected}
        theirs = V2.affine(x, **arguments, interpolation=V2.InterpolationMode.BILINEAR)
        assert torch.allclose(Geometry(ours, "zeros").apply_image(x), theirs, atol=2e-3)


class TestColor:
    @pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_each_image_has_its_own_factor(self, name, channels):
        x = images(channels=channels)
        factors = torch.linspace(0, 2, len(x))
        ours = getattr(color, f"adjust_{name}")(x, factors)
        theirs = [getattr(V2, f"adjust_{name}")(image, factor.item()) for image, factor in zip(x, factors, strict=True)]
        assert torch.allclose(ours, torch.stack(theirs), atol=1e-5)

    @pytest.mark.parametrize("bits", [1, 4, 8])
    def test_posterize_and_solarize_match_torchvision(self, bits):
        bytes_ = (images() * 255).round().to(torch.uint8)
        ours = color.posterize(bytes_ / 255, bits)
        assert torch.equal((ours * 255).round().to(torch.uint8), V2.posterize(bytes_, bits))
        assert torch.equal(color.solarize(bytes_ / 255, bits / 10), V2.solarize(bytes_ / 255, bits / 10))

    def test_jitter_of_zero_strength_changes_nothing(self):
        x = images()
        assert torch.equal(Augmentation(flip=False)(x, HERE), x)
        one = torch.ones(3, len(x))
        assert torch.allclose(color.jitter(x, one), x, atol=1e-6)

    def test_randaugment_draws_every_operation_for_some_image(self):
        augmentation = Augmentation(flip=False, randaugment=2)
        drawn = augmentation._draw_operations(512, HERE)
        counts = torch.bincount(drawn.operation.flatten(), minlength=len(OPERATIONS))
        assert counts.min() > 1024 / len(OPERATIONS) / 2
        assert set(OPERATIONS) == {"identity", *GEOMETRIC, *COLOR}

    @pytest.mark.parametrize("name", COLOR)
    def test_a_colour_operation_touches_only_its_images(self, name):
        x = images(size=(12, 12)) * 0.6 + 0.1
        operation = torch.zeros(1, 8, dtype=torch.long)
        operation[0, ::2] = OPERATIONS.index(name)
        result = DrawnOperations(operation, torch.ones(1, 8), strength=0.9).apply_color(x)
        assert torch.equal(result[1::2], x[1::2])
        assert all(not torch.equal(a, b) for a, b in zip(result[::2], x[::2], strict=True))


class TestWholePipeline:
    @given(
        crop_padding=st.integers(0, 20),
        color_strength=st.floats(0, 3),
        operations=st.integers(0, 4),
        magnitude=st.integers(0, 30),
        erasing=st.floats(0, 1),
        size=st.tuples(st.integers(3, 17), st.integers(3, 17)),
        channels=st.sampled_from([1, 3]),
        seed=st.integers(0, 2**40),
    )
    @settings(max_examples=60, deadline=None)
    def test_values_and_shape_survive_any_setting(
        self, crop_padding, color_strength, operations, magnitude, erasing, size, channels, seed
    ):
        augmentation = Augmentation(
            crop_padding=crop_padding,
            color=color_strength,
            randaugment=operations,
            magnitude=magnitude,
            erasing=erasing,
            seed=seed,
        )
        x = images(4, size, channels)
        before = x.clone()
        result = augmentation(x, HERE)
        assert torch.equal(x, before)
        assert result.shape == x.shape
        assert result.dtype == x.dtype
        assert result.isfinite().all()
        assert result.min() >= 0
        assert result.max() <= 1

    def test_erasing_paints_one_rectangle_in_one_colour(self):
        x = images(batch=64, size=(20, 20))
        changed = (Augmentation(flip=False, erasing=1.0)(x, HERE) != x).any(1)
        for mask, image in zip(changed, Augmentation(flip=False, erasing=1.0)(x, HERE), strict=True):
            rows, columns = mask.any(1), mask.any(0)
            assert mask.sum() == rows.sum() * columns.sum()
            assert 0.01 < mask.float().mean() < 0.36
            assert image[:, mask].std(dim=1).max() < 1e-6
        assert not torch.equal(changed[0], changed[1])
        half = (Augmentation(flip=False, erasing=0.5)(x, HERE) != x).flatten(1).any(1).float().mean()
        assert 0.3 < half < 0.7

    def test_half_precision_keeps_its_dtype(self):
        x = images().bfloat16()
        assert Augmentation(**EVERYTHING)(x, HERE).dtype == torch.bfloat16

    def test_a_new_operation_leaves_the_others_as_they_were(self):
        x = images()
        alone = Augmentation(crop_padding=2, seed=5)(x, HERE)
        erased = Augmentation(crop_padding=2, erasing=1.0, seed=5)(x, HERE)
        assert ((alone == erased).all(1).float().mean(dim=(1, 2)) > 0.6).all()

    @pytest.mark.parametrize("other", [{"epoch": 2}, {"batch_idx": 3}, {"rank": 1}, {"seed": 1}])
    def test_random_numbers_depend_on_seed_epoch_batch_and_rank(self, other):
        x = images(batch=32)
        place = {"epoch": 1, "batch_idx": 2, "rank": 0, **other}
        seed = place.pop("seed", 0)
        torch.manual_seed(0)
        first = Augmentation(**EVERYTHING)(x, HERE)
        torch.manual_seed(1)
        assert torch.equal(first, Augmentation(**EVERYTHING)(x, HERE))
        assert not torch.equal(first, Augmentation(**EVERYTHING, seed=seed)(x, BatchPosition(**place)))

    def test_global_random_state_is_left_alone(self):
        state = torch.get_rng_state()
        Augmentation(**EVERYTHING)(images(), HERE)
        Mixing(1.0, 1.0)(images(), torch.eye(8), HERE)
        assert torch.equal(state, torch.get_rng_state())

    def test_fingerprint_follows_the_settings(self):
        assert Augmentation().fingerprint() == pickle.loads(pickle.dumps(Augmentation())).fingerprint()
        assert Augmentation().fingerprint() != Augmentation(seed=1).fingerprint()


class TestMixing:
    @given(
        mixup=st.floats(0, 5),
        cutmix=st.floats(0, 5),
        size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        batch=st.integers(1, 9),
        seed=st.integers(0, 1000),
    )
    @settings(max_examples=80, deadline=None)
    def test_labels_are_the_shares_of_the_pixels(self, mixup, cutmix, size, batch, seed):
        # Image i is filled with i in a one-hot way, so that the mean over pixels is the mixture itself.
        one_hot = torch.eye(batch)
        x = one_hot[:, :, None, None].expand(batch, batch, *size)
        mixed, soft = Mixing(mixup, cutmix, seed)(x, one_hot, HERE)
        assert torch.allclose(soft.sum(1), torch.ones(batch), atol=1e-5)
        assert torch.allclose(mixed.mean(dim=(2, 3)), soft, atol=1e-4)
        assert mixed.min() >= 0
        assert mixed.max() <= 1 + 1e-6

    def test_cutmix_replaces_one_box_of_whole_pixels(self):
        one_hot = torch.eye(64)
        x = one_hot[:, :, None, None].expand(64, 64, 24, 24)
        mixed, soft = Mixing(cutmix=1.0)(x, one_hot, HERE)
        assert set(mixed.unique().tolist()) == {0.0, 1.0}
        own = mixed[torch.arange(64), torch.arange(64)]
        for kept, share in zip(own, soft.diagonal(), strict=True):
            box = kept == 0
            assert box.sum() == box.any(1).sum() * box.any(0).sum()
            assert share.item() == pytest.approx(kept.mean().item(), abs=1e-6)
        assert soft.diagonal().std() > 0.1

    def test_both_on_takes_either_for_each_image(self):
        one_hot = torch.eye(64)
        x = one_hot[:, :, None, None].expand(64, 64, 16, 16)
        mixed, _ = Mixing(1.0, 1.0)(x, one_hot, HERE)
        blended = [((m > 0.01) & (m < 0.99)).any().item() for m in mixed]
        assert 10 < sum(blended) < 54

    def test_beta_of_one_is_uniform_and_large_alpha_is_even(self):
        random = torch.linspace(0.001, 0.999, 101)
        from tl_lightning.data.augment.mixing import symmetric_beta

        assert torch.allclose(symmetric_beta(random, 1.0), random, atol=1e-5)
        assert (symmetric_beta(random, 1000.0) - 0.5).abs().max() < 0.05
        assert symmetric_beta(random, 0.2).sub(0.5).abs().mean() > 0.35


class TestCallback:
    def test_training_sees_augmented_images_and_validation_the_plain_ones(self):
        module = fit(BatchAugmentation(crop_padding=2, mixup=1.0))
        plain = next(iter(DataLoader(Dictionaries(), batch_size=4)))
        assert torch.equal(module.val_batches[0]["image"], plain["image"])
        assert "soft_label" not in module.val_batches[0]
        first = module.train_batches[0]
        assert not torch.equal(first["image"], plain["image"])
        assert torch.equal(first["label"], plain["label"])
        assert torch.equal(first["index"], plain["index"])
        assert first["soft_label"].shape == (4, 3)
        assert not torch.equal(first["image"], module.train_batches[3]["image"])

    def test_epoch_and_batch_index_fix_the_images(self):
        module = fit(BatchAugmentation(**EVERYTHING, mixup=0.5, seed=7))
        plain = list(DataLoader(Dictionaries(), batch_size=4))
        for number, batch in enumerate(module.train_batches):
            position = BatchPosition(epoch=number // 3, batch_idx=number % 3)
            augmented = Augmentation(**EVERYTHING, seed=7)(plain[number % 3]["image"], position)
            one_hot = torch.eye(3)[batch["label"]]
            mixed, soft = Mixing(mixup=0.5, seed=7)(augmented, one_hot, position)
            assert torch.equal(batch["image"], mixed)
            assert torch.equal(batch["soft_label"], soft)

    def test_list_batches_get_soft_labels_in_place_of_labels(self):
        module = fit(BatchAugmentation(cutmix=1.0), Pairs())
        _, label = module.train_batches[0]
        assert label.shape == (4, 3)
        assert torch.allclose(label.sum(1), torch.ones(4))
        plain = fit(BatchAugmentation(), Pairs()).train_batches[0]
        assert plain[1].dtype == torch.int64

    def test_soft_labels_that_are_there_are_mixed(self):
        class Soft(Dictionaries):
            def __getitem__(self, i):
                return {**super().__getitem__(i), "soft_label": torch.tensor([0.5, 0.5, 0.0])}

        module = fit(BatchAugmentation(mixup=1.0), Soft())
        assert torch.allclose(module.train_batches[0]["soft_label"], torch.tensor([0.5, 0.5, 0.0]).expand(4, 3))

    def test_number_of_workers_does_not_matter(self):
        one = fit(BatchAugmentation(**EVERYTHING), epochs=1)
        other = fit(BatchAugmentation(**EVERYTHING), epochs=1, workers=2)
        assert all(
            torch.equal(a["image"], b["image"]) for a, b in zip(one.train_batches, other.train_batches, strict=True)
        )

    def test_a_run_resumed_in_mid_epoch_sees_the_same_images(self, tmp_path):
        class Save(Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
                if (trainer.current_epoch, batch_idx) == (1, 0):
                    trainer.save_checkpoint(tmp_path / "half.ckpt")

        def data() -> TransferDataModule:
            return TransferDataModule("digits", image_size=8, batch_size=8, samples_per_class=3)

        whole, rest = Probe(), Probe()
        trainer(BatchAugmentation(**EVERYTHING), Save(), epochs=3).fit(whole, data())
        resumed = trainer(BatchAugmentation(**EVERYTHING), epochs=3)
        resumed.fit(rest, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
        assert len(whole.train_batches) == 12
        assert len(rest.train_batches) == 7
        for one, other in zip(whole.train_batches[5:], rest.train_batches, strict=True):
            assert torch.equal(one["index"], other["index"])
            assert torch.equal(one["image"], other["image"])

    def test_channels_last_stays(self):
        class Format(Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)

        seen = []

        class Look(Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                seen.append(batch["image"].is_contiguous(memory_format=torch.channels_last))

        trainer(Format(), BatchAugmentation(**EVERYTHING), Look()).fit(
            Probe(), DataLoader(Dictionaries(), batch_size=4)
        )
        assert seen == [True] * 3

    def test_callback_can_be_pickled(self):
        assert pickle.loads(pickle.dumps(BatchAugmentation(color=0.3))).augmentation == Augmentation(color=0.3)


class TestMistakes:
    @pytest.mark.parametrize(
        ("wrong", "named"),
        [
            ({"crop_padding": -1}, "crop_padding"),
            ({"resized_crop": (0.0, 1.0)}, "resized_crop"),
            ({"resized_crop": (0.9, 0.5)}, "resized_crop"),
            ({"resized_crop": (0.5, 1.0), "crop_padding": 2}, "crop_padding and resized_crop"),
            ({"color": -0.1}, "color"),
            ({"color": (0.1, 0.1)}, "color"),
            ({"randaugment": -1}, "randaugment"),
            ({"magnitude": 31}, "magnitude"),
            ({"erasing": 1.5}, "erasing"),
            ({"mixup": -1.0}, "mixup"),
            ({"cutmix": float("nan")}, "cutmix"),
            ({"padding": "mirror"}, "padding"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_impossible_values(self, wrong, named):
        with pytest.raises(UserError, match=named) as caught:
            BatchAugmentation(**wrong)
        assert "\n" not in str(caught.value)

    def test_tuple_batches_are_refused(self):
        def as_tuple(samples):
            return tuple(torch.stack(column) for column in zip(*samples, strict=True))

        with pytest.raises(UserError, match="tuple"):
            trainer(BatchAugmentation()).fit(Probe(), DataLoader(Pairs(), batch_size=4, collate_fn=as_tuple))

    def test_images_outside_of_0_1_are_refused_where_colours_change(self):
        class Normalised(Dictionaries):
            def __getitem__(self, i):
                sample = super().__getitem__(i)
                return {**sample, "image": sample["image"] * 4 - 2}

        with pytest.raises(UserError, match="normalise in the module"):
            fit(BatchAugmentation(color=0.2), Normalised())
        assert fit(BatchAugmentation(), Normalised()).train_batches

    def test_bytes_are_refused(self):
        class Bytes(Dictionaries):
            def __getitem__(self, i):
                return {**super().__getitem__(i), "image": torch.zeros(3, 8, 8, dtype=torch.uint8)}

        with pytest.raises(UserError, match="float images"):
            fit(BatchAugmentation(), Bytes())

    def test_mixing_needs_the_number_of_classes(self):
        class Nameless(Probe):
            def __init__(self):
                super().__init__()
                del self.num_classes

        with pytest.raises(UserError, match="num_classes"):
            trainer(BatchAugmentation(mixup=1.0)).fit(Nameless(), DataLoader(Dictionaries(), batch_size=4))
        with pytest.raises(UserError, match="labels 0 to 2"):
            fit(BatchAugmentation(mixup=1.0, num_classes=2))

    def test_cached_activations_are_refused(self):
        class Cached(Dictionaries):
            def __getitem__(self, i):
                return {"activation": torch.zeros(4), "label": torch.tensor(0)}

        with pytest.raises(UserError, match="CachedDataModule"):
            fit(BatchAugmentation(), Cached())
