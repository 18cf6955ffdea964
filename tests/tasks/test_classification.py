"""TransferModule trained on real digits through Lightning's Trainer."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from quiet_trainer import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tl_lightning import BatchAugmentation, TransferDataModule, TransferModule, UserError, create_backbone
from tl_lightning.tasks import NonFiniteLossError


def tiny_cnn(classes=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


@pytest.fixture(scope="module")
def digits():
    datamodule = TransferDataModule("digits", image_size=32, batch_size=64, samples_per_class=60)
    datamodule.setup()
    return datamodule


def test_it_learns_and_logs_every_metric(digits):
    module = TransferModule(tiny_cnn(), 10, lr=3e-3)
    fit = quiet_trainer(max_epochs=6)
    fit.fit(module, digits)
    assert {"train/loss", "train/accuracy", "val/accuracy", "val/ece"} <= fit.callback_metrics.keys()
    test = fit.test(module, digits, verbose=False)[0]
    assert test["test/accuracy"] > 0.8
    assert test["test/auroc"] > 0.95
    assert set(test) == {f"test/{name}" for name in ("loss", "accuracy", "macro_f1", "auroc", "ece")}
    assert module.confusion.sum() == len(digits.test_set)
    accuracy = module.confusion.diag().sum() / module.confusion.sum()
    assert accuracy.item() == pytest.approx(test["test/accuracy"])


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_schedules_and_optimizers_train(digits, schedule, optimizer):
    module = TransferModule(tiny_cnn(), 10, lr=1e-3, schedule=schedule, optimizer=optimizer)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    quiet_trainer(limit_train_batches=3).fit(module, digits)
    assert all(not torch.equal(before[name], p) for name, p in module.named_parameters())


def test_images_are_normalised_inside():
    module = TransferModule(tiny_cnn(), 10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).eval()
    image = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    assert torch.allclose(module(image), module.backbone((image - mean) / std), atol=1e-6)


def test_parameter_groups_are_named_by_stage_and_cover_everything(digits):
    module = TransferModule("shufflenet_v2_x0_5", 10)
    fit = quiet_trainer(limit_train_batches=1, limit_val_batches=1)
    fit.fit(module, digits)
    groups = fit.optimizers[0].param_groups
    assert groups[0]["name"] == "conv1/decay"
    assert groups[-1]["name"] == "fc/no_decay"
    assert sorted(n for g in groups for n in g["param_names"]) == sorted(n for n, _ in module.named_parameters())
    assert all(g["weight_decay"] == 0 for g in groups if g["name"].endswith("no_decay"))


def test_label_smoothing_and_class_weights_change_the_loss():
    logits, label = torch.randn(8, 10), torch.arange(8)
    plain = TransferModule(tiny_cnn(), 10).loss(logits, label)
    smooth = TransferModule(tiny_cnn(), 10, label_smoothing=0.1).loss(logits, label)
    weighted = TransferModule(tiny_cnn(), 10, class_weights=[5.0] + [1.0] * 9).loss(logits, label)
    log_p = logits.log_softmax(1)
    expected = -(0.9 * log_p[torch.arange(8), label] + 0.1 * log_p.mean(1)).mean()
    assert torch.allclose(smooth, expected)
    assert not torch.allclose(plain, weighted)


def test_soft_labels_replace_the_label_in_the_loss():
    module = TransferModule(tiny_cnn(), 10)
    image, label = torch.rand(4, 3, 16, 16), torch.tensor([1, 2, 3, 4])
    module.log = lambda *args, **kwargs: None  # outside of a Trainer there is nothing to log to
    hard = module.training_step({"image": image, "label": label}, 0)
    one_hot = nn.functional.one_hot(label, 10).float()
    same = module.training_step({"image": image, "label": label, "soft_label": one_hot}, 0)
    other = module.training_step({"image": image, "label": label, "soft_label": one_hot.roll(1, 1)}, 0)
    assert torch.allclose(hard, same, atol=1e-6)
    assert not torch.allclose(hard, other)


def test_auxiliary_heads_add_to_the_loss():
    backbone = create_backbone("googlenet", "none", 5, aux_logits=True)
    module = TransferModule(backbone, 5, aux_loss_weight=0.3).train()
    output = module(torch.rand(2, 3, 64, 64))
    label = torch.tensor([0, 1])
    parts = [nn.functional.cross_entropy(head, label) for head in output]
    assert torch.allclose(module.loss(output, label), parts[0] + 0.3 * (parts[1] + parts[2]))


def test_pairs_as_any_dataset_gives_them_train():
    pairs = TensorDataset(torch.rand(16, 3, 16, 16), torch.randint(10, (16,)))
    module = TransferModule(tiny_cnn(), 10)
    quiet_trainer().fit(module, DataLoader(pairs, batch_size=8), DataLoader(pairs, batch_size=8))
    probabilities = torch.cat(quiet_trainer().predict(module, DataLoader(pairs, batch_size=8)))
    assert torch.allclose(probabilities.sum(1), torch.ones(16), atol=1e-5)


def test_a_diverged_loss_ends_the_fit(digits):
    module = TransferModule(tiny_cnn(), 10, lr=1e30, optimizer="sgd", schedule="constant", warmup_fraction=0)
    with pytest.raises(NonFiniteLossError, match="lower the learning rate"):
        quiet_trainer(max_epochs=3).fit(module, digits)


def test_a_checkpoint_restores_the_module(digits, tmp_path):
    module = TransferModule("shufflenet_v2_x0_5", 10, lr=0.01)
    fit = quiet_trainer(limit_train_batches=1, limit_val_batches=1)
    fit.fit(module, digits)
    fit.save_checkpoint(tmp_path / "module.ckpt")
    restored = TransferModule.load_from_checkpoint(tmp_path / "module.ckpt").eval()
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(restored(image), module.eval()(image))
    assert restored.hparams["lr"] == 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamww"}, "did you mean adamw"),
        ({"lr": 0}, "lr must be above 0"),
        ({"warmup_fraction": 1.5}, "warmup_fraction"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"class_weights": [1.0]}, "1 values for 10 classes"),
    ],
)
def test_impossible_values_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TransferModule(tiny_cnn(), 10, **options)


def test_activations_without_a_suffix_are_refused():
    with pytest.raises(UserError, match="use_suffix"):
        TransferModule(tiny_cnn(), 10).output({"activation": torch.rand(1, 3)})


PAIRS = TensorDataset(torch.rand(24, 3, 16, 16), torch.randint(10, (24,)))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("options", [{"schedule": "cosine"}, {"schedule": "constant", "warmup_fraction": 0.1}])
def test_a_schedule_needs_the_number_of_steps(options):
    # Seen to fail: a cosine over data without a length was constant, one without an end an OverflowError.
    module = TransferModule(tiny_cnn(), 10, **options)
    with pytest.raises(UserError, match=r"needs to know the steps of the fit.*set max_steps"):
        quiet_trainer().fit(module, DataLoader(Stream(), batch_size=8))
    with pytest.raises(UserError, match="set max_steps"):
        quiet_trainer(max_epochs=-1).fit(module, DataLoader(PAIRS, batch_size=8))


def test_a_constant_rate_does_not_and_max_steps_tells_it():
    rates = Rates()
    constant = TransferModule(tiny_cnn(), 10, schedule="constant", warmup_fraction=0)
    quiet_trainer(callbacks=[rates]).fit(constant, DataLoader(Stream(), batch_size=8))
    assert rates.seen == [1e-3] * 3
    cosine = TransferModule(tiny_cnn(), 10, warmup_fraction=0)
    quiet_trainer(callbacks=[rates], max_epochs=-1, max_steps=4).fit(cosine, DataLoader(Stream(), batch_size=8))
    assert rates.seen[3:] == pytest.approx([1e-3 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])


def test_a_warm_up_fits_into_a_single_step():
    module = TransferModule(tiny_cnn(), 10, warmup_fraction=0.6)
    quiet_trainer(fast_dev_run=True).fit(module, DataLoader(PAIRS, batch_size=8), DataLoader(PAIRS, batch_size=8))


def test_a_parameter_of_the_module_itself_trains():
    class Scaled(TransferModule):
        def __init__(self):
            super().__init__(tiny_cnn(), 10, lr=0.1)
            self.temperature = nn.Parameter(torch.ones(()))
            self.tied = self.backbone[-1].weight

        def output(self, batch):
            return super().output(batch) * self.temperature

    module = Scaled()
    fit = quiet_trainer()
    fit.fit(module, DataLoader(PAIRS, batch_size=8))
    assert module.temperature != 1
    assert fit.optimizers[0].param_groups[-1]["param_names"] == ["temperature"]


def test_gradients_of_fp16_are_clipped():
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    module = TransferModule(tiny_cnn(), 10)
    quiet_trainer(plugins=[precision], gradient_clip_val=1.0).fit(module, DataLoader(PAIRS, batch_size=8))


@pytest.mark.parametrize("size", [8, 10])
def test_labels_that_are_mixed_in_a_pair_train_and_count(size):
    # Seen to fail: with as many images as classes the accuracy was of labels against probabilities, else an error.
    module = TransferModule(tiny_cnn(), 10)
    nn.init.constant_(module.backbone[-1].bias[3], 9.0)
    fit = quiet_trainer(callbacks=[BatchAugmentation(mixup=0.2)], limit_train_batches=1)
    fit.fit(module, DataLoader(TensorDataset(PAIRS.tensors[0], torch.full((24,), 3)), batch_size=size))
    assert fit.callback_metrics["train/accuracy"] == 1
