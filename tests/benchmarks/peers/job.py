"""What every peer is asked to do: train one network, by one schedule, on the same batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from peers.recorder import Recorder
from tl_lightning.data import TransferDataModule
from tl_lightning.data.loader import EpochOrder

NEVER = 10**6  # an epoch that no run reaches


class NotApplicable(Exception):
    """The peer has no such feature; the message says which."""


class Network(nn.Module):
    """A feature extractor and a head; all peers train it under the same parameter names."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))


@dataclass(frozen=True)
class Job:
    """One fit.

    Args:
        network: Trained in place.
        train: Normalised images [N, 3, H, W] and labels [N].
        validation: The same for validation; none if None.
        groups: Parts of the network by depth, shallow to deep: paths of modules; the last one is ``head``.
        schedule: Epoch -> number of frozen groups from then on.
        epochs: Number of epochs.
        batch_size: Images a batch.
        shuffle: Whether the order of the images changes with the epoch: the same order for every peer.
        lr: Rate of AdamW (weight decay 0.01).
        decay: Factor of the rate from one group to the one below; 1 for equal rates.
        scheduler: Makes a torch scheduler, stepped after every batch.
        augment: Maps a batch of images to a batch of randomly augmented ones.
        warmup_steps: Steps in which the rate of a thawed group shall rise.
        folder: Where checkpoints go; none are written if None.
        checkpoint_steps: Steps between two checkpoints; one at the end of every epoch if None.
        resume: Checkpoint to go on from.
        swap: Give parameters of equal shape to the optimizer in the reverse order.
        user_train: The user's code calls ``train()`` on the whole module when an epoch has started.
        compiled: Use ``torch.compile``.
        processes: Processes on the CPU, joined by gloo.
        precision: ``"32"`` or ``"bf16"``.
        extra: Name of a feature to switch on beside the freezing: ``"lr_find"``, ``"swa"``, ``"swa with a list of
            rates"`` or ``"gradcam"``.
        tick: Called whenever a batch is fetched.
        data: The same images as this package's own data module, which it trains from; peers have tensors.
        normalisation: Mean and standard deviation by which the tensors were normalised.
        recorder: Takes down every step; nothing is taken down if None.
    """

    network: Network
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None = None
    groups: Sequence[Sequence[str]] = (("backbone",), ("head",))
    schedule: dict[int, int] = field(default_factory=lambda: {0: 1})
    epochs: int = 1
    batch_size: int = 16
    shuffle: bool = False
    lr: float = 1e-3
    decay: float = 1.0
    scheduler: Callable[[Optimizer], Any] | None = None
    augment: Callable[[Tensor], Tensor] | None = None
    warmup_steps: int = 0
    folder: Path | None = None
    checkpoint_steps: int | None = None
    resume: Path | None = None
    swap: bool = False
    user_train: bool = False
    compiled: bool = False
    processes: int = 1
    precision: str = "32"
    extra: str | None = None
    tick: Callable[[], None] | None = None
    data: TransferDataModule | None = None
    normalisation: tuple[Sequence[float], Sequence[float]] = ((0.0,) * 3, (1.0,) * 3)
    recorder: Recorder | None = None

    def but(self, **changes: Any) -> Job:
        """Return the job with some values changed."""
        return replace(self, **changes)

    @property
    def device(self) -> torch.device:
        """The GPU if the images lie there, else the CPU."""
        return self.train[0].device

    def loader(self) -> DataLoader[Any]:
        """Return the batches of an epoch: whole batches are indexed at once, the cheapest way that there is."""
        if self.processes > 1:  # Lightning puts its own sampler in
            return DataLoader(TensorDataset(*self.train), self.batch_size)
        batches = EpochBatches(len(self.train[0]), self.batch_size, self.shuffle)
        return DataLoader(_Batches(self.train, self.augment, self.tick), sampler=batches, batch_size=None)

    def validation_loader(self) -> DataLoader[Any] | None:
        """Return the validation batches."""
        return DataLoader(TensorDataset(*self.validation), self.batch_size) if self.validation else None

    def group_names(self, group: int) -> list[str]:
        """Return the names of the parameters of a group."""
        paths = tuple(f"{path}." for path in self.groups[group])
        return [name for name, _ in self.network.named_parameters() if name.startswith(paths)]

    def frozen_groups(self, epoch: int) -> int:
        """Return how many groups are frozen in an epoch."""
        return self.schedule[max(e for e in self.schedule if e <= epoch)]

    def rate(self, group: int) -> float:
        """Return the base rate of a group."""
        return self.lr * self.decay ** (len(self.groups) - 1 - group)

    def optimizer_groups(self, trainable_only: bool) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimizer, one a group of the network where the rates differ."""
        parameters = dict(self.network.named_parameters())
        chosen = [[parameters[n] for n in self.group_names(g)] for g in range(len(self.groups))]
        groups = [
            {"params": [p for p in group if p.requires_grad or not trainable_only], "lr": self.rate(g)}
            for g, group in enumerate(chosen)
        ]
        if self.decay == 1.0:
            groups = [{"params": [p for group in groups for p in group["params"]], "lr": self.lr}]
        if self.swap:
            groups = [{**group, "params": swap_equal_shapes(group["params"])} for group in groups]
        return [group for group in groups if group["params"]]


def swap_equal_shapes(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters in an order in which the shapes stand where they stood, but other tensors have them."""
    left: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        left.setdefault(parameter.shape, []).append(parameter)
    return [left[parameter.shape].pop() for parameter in parameters]


class EpochBatches(Sampler[list[int]]):
    """Batches of positions, in the order that this package's own loader has in the same epoch with seed 0."""

    def __init__(self, count: int, batch_size: int, shuffle: bool) -> None:
        self.order, self.batch_size, self.epoch = EpochOrder(count, shuffle, seed=0), batch_size, 0

    def __len__(self) -> int:
        return -(-self.order.count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order.order(self.epoch).tolist()
        self.epoch += 1
        return (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size))


class _Batches(Dataset[Any]):
    def __init__(
        self,
        data: tuple[Tensor, Tensor],
        augment: Callable[[Tensor], Tensor] | None,
        tick: Callable[[], None] | None,
    ) -> None:
        self.data, self.augment, self.tick = data, augment, tick

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, positions: Any) -> tuple[Tensor, Tensor]:
        if self.tick is not None:
            self.tick()
        images, labels = self.data[0][positions], self.data[1][positions]
        return (images if self.augment is None else self.augment(images)), labels


class Peer(ABC):
    """A way to train.

    Attributes:
        key: As given on the command line.
        name: As printed.
        package: What must be installed.
        configuration: How it is set up, in words, for the table.
        gradual: Whether the groups can thaw one after the other.
        variants: Trap -> configurations that its documentation offers; a trap is passed if one of them passes.
    """

    key: str
    name: str
    package: str
    configuration: str
    gradual: bool = True
    variants: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __init__(self, variant: str = "") -> None:
        self.variant = variant

    @abstractmethod
    def fit(self, job: Job) -> None:
        """Train ``job.network`` in place.

        Raises:
            NotApplicable: The peer cannot do what the job asks for.
        """

    def checkpoints(self, job: Job) -> list[Path]:
        """Return the checkpoints of a fit, oldest first."""
        assert job.folder is not None
        return sorted(job.folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[-1]))
