"""Miniature networks, data and fits that the tests of the freezing callbacks share."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from quiet_trainer import quiet_trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tl_lightning.optim import effective_lrs

CLASSES = 3
Configure = Callable[[list[nn.Parameter]], Any]


class TinyNet(nn.Module):
    """Four stages (conv1, layer1, layer2, fc) with BatchNorm in every one and dropout in two; takes any image size."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._block(width)
        self.layer2 = self._block(width)
        self.fc = nn.Linear(width, CLASSES)

    @staticmethod
    def _block(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean(dim=(2, 3)))


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


class Plain(pl.LightningModule):
    """A LightningModule that knows nothing of the package."""

    def __init__(self, backbone: nn.Module | None = None, configure: Configure = adamw) -> None:
        super().__init__()
        self.backbone = backbone if backbone is not None else TinyNet()
        self.configure = configure

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.backbone(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return self.configure(list(self.parameters()))


class ResumableLoader:
    """Batches in a fixed order, resumable within an epoch as ``BatchLoader`` and torchdata's loaders are."""

    def __init__(self, batches: int = 3, size: int = 6, pixels: int = 8) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.rand(batches, size, 3, pixels, pixels, generator=generator)
        self.labels = torch.randint(CLASSES, (batches, size), generator=generator)
        self.position = 0
        self.resumed = False

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.resumed:
            self.position = 0
        self.resumed = False
        while self.position < len(self):
            self.position += 1
            yield self.images[self.position - 1], self.labels[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.resumed = state["position"] % len(self), True


def loader(images: int = 18, batch_size: int = 6, pixels: int = 8, **options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    data = torch.rand(images, 3, pixels, pixels, generator=generator)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    return DataLoader(TensorDataset(data, labels), batch_size, **options)


def trainer(epochs: int, callbacks: Sequence[Callback], **options: Any) -> pl.Trainer:
    return quiet_trainer(max_epochs=epochs, callbacks=list(callbacks), **{"num_sanity_val_steps": 2, **options})


def fit(
    module: pl.LightningModule,
    callbacks: Sequence[Callback],
    epochs: int = 2,
    *,
    train: Any = None,
    val: Any = None,
    ckpt_path: Any = None,
    **options: Any,
) -> pl.Trainer:
    """Fit on random images; return the trainer."""
    made = trainer(epochs, callbacks, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.fit(module, train if train is not None else loader(), val, ckpt_path=ckpt_path, weights_only=False)
    return made


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers by name."""
    return {name: t.detach().clone() for name, t in [*module.named_parameters(), *module.named_buffers()]}


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same in every bit (a zero's sign and NaN included)."""
    a, b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and bool((a == b).all())


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Return the names of tensors that differ from ``before`` in any bit."""
    return {name for name, t in tensors(module).items() if not identical(before[name], t)}


class Recorder(Callback):
    """Notes, at the start of every training batch, all that a resumed run must agree in."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], dict[str, Any]] = {}
        self.rates: dict[tuple[int, int], dict[str, float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        key = (trainer.current_epoch, batch_idx)
        self.rates[key] = effective_lrs(trainer.optimizers[0])
        self.rows[key] = {
            "global_step": trainer.global_step,
            "trains": sorted(n for n, p in pl_module.named_parameters() if p.requires_grad),
            "train_mode": sorted(n for n, m in pl_module.named_modules() if m.training),
            "rates": self.rates[key],
            "rng": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
            "weights": {n: _digest(t) for n, t in tensors(pl_module).items()},
        }


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
