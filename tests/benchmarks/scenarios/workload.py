"""What is trained: real images once decoded, a backbone with ImageNet weights, and where it is cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from peers.job import Job, Network, Peer
from peers.registry import peer_class
from torch import Tensor, nn

from tl_lightning.backbones import create_backbone, input_spec
from tl_lightning.data import TransferDataModule, dataset_card
from tl_lightning.flops import flop_counter

BACKBONE, WEIGHTS = "efficientnet_lite0", "IMAGENET1K_V1"
PEERS = ("lightning", "finetuning-scheduler", "fastai", "timm")
OURS = "tl_lightning"
BARE = "bare PyTorch"


@dataclass(frozen=True)
class Sizes:
    """How much is trained.

    Args:
        data_dir: A folder ``{train,test}/<class>/*``; the packaged solar cells if None.
        images: Training images.
        test_images: Test images.
        epochs: Epochs of S1 and S2.
        image_size: Pixels of a side.
        batch_size: Images a batch.
        repeats: Rounds of every measurement.
    """

    data_dir: str | None = None
    images: int = 2000
    test_images: int = 2000
    epochs: int = 10
    image_size: int = 96
    batch_size: int = 64
    repeats: int = 5


class Workload:
    """The images, in memory, and fresh networks of the same weights."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.data = self.data_module(sizes.images)
        self.device = torch.device("cpu")
        self.probe_seconds: dict[str, list[float]] = {}  # what S1 measured

    def data_module(self, images: int) -> TransferDataModule:
        """Return a data module with so many training images, set up."""
        name = "elpv" if self.sizes.data_dir is None else "imagefolder"
        arguments = {"image_size": self.sizes.image_size, "batch_size": self.sizes.batch_size}
        data = TransferDataModule(
            name,
            self.sizes.data_dir,
            samples_per_class=images // self.classes,
            val_samples=16,
            test_samples=self.sizes.test_images,
            **arguments,  # type: ignore[arg-type]
        )
        data.setup()
        return data

    @cached_property
    def classes(self) -> int:
        """Number of classes."""
        if self.sizes.data_dir is None:
            return dataset_card("elpv").classes or 0
        train = Path(self.sizes.data_dir) / "train"
        return sum(path.is_dir() for path in (train if train.is_dir() else train.parent).iterdir())

    @cached_property
    def tiny(self) -> Workload:
        """The same work with a few images, to warm up."""
        return Workload(replace(self.sizes, images=4 * self.classes, test_images=2 * self.classes, epochs=1))

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        """Normalised training images [N, 3, H, W] and labels, as peers get them."""
        return self.tensors("train")

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Normalised test images and labels."""
        return self.tensors("test")

    def tensors(self, part: str, data: TransferDataModule | None = None) -> tuple[Tensor, Tensor]:
        """Return a part as the network sees it."""
        data = data or self.data
        image_set = data.train_set if part == "train" else data.test_set
        spec = input_spec(BACKBONE, WEIGHTS)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
        return (data.resize(image_set.images) - mean) / std, image_set.labels

    def layers(self) -> list[nn.Module]:
        """Return the model as a list of blocks; the same weights at every call."""
        torch.manual_seed(0)
        return blocks(create_backbone(BACKBONE, WEIGHTS, self.data.num_classes, dropout=0.0))

    def network(self, cut: int = -1) -> Network:
        """Return a fresh network, cut before a block; by default before the classifier."""
        layers = self.layers()
        return Network(nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:]))

    @cached_property
    def half(self) -> int:
        """The cut that leaves nearest to half of the forward operations on each side."""
        shares, below = block_flops(self.layers(), self.train[0][:1]), 0.0
        distance = []
        for share in shares:
            below += share
            distance.append(abs(below - 0.5))
        return distance.index(min(distance)) + 1

    def job(self, network: Network, *, frozen: bool, epochs: int | None = None) -> Job:
        """Return the job that every contender gets."""
        spec = input_spec(BACKBONE, WEIGHTS)
        return Job(
            network,
            self.train,
            schedule={0: 1 if frozen else 0},
            epochs=epochs or self.sizes.epochs,
            batch_size=self.sizes.batch_size,
            shuffle=True,
            data=self.data,
            normalisation=(spec.mean, spec.std),
        )


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a torchvision CNN in order, stages taken apart into their blocks."""
    children = dict(model.named_children())
    tail = [children.pop(next(n for n in ("classifier", "fc") if n in children))]
    layers: list[nn.Module] = []
    for child in children.values():
        parts = list(child) if type(child) is nn.Sequential else [child]
        layers += [block for part in parts for block in (part if type(part) is nn.Sequential else [part])]
    return [*layers, nn.Flatten(), *tail]


def block_flops(layers: list[nn.Module], image: Tensor) -> list[float]:
    """Return the share of the forward operations of every block."""
    counts = []
    with torch.no_grad():
        for layer in layers:
            with flop_counter() as counter:
                image = layer.eval()(image)
            counts.append(counter.get_total_flops())
    return [count / sum(counts) for count in counts]


def forward_pass(network: nn.Module, images: Tensor, batch_size: int) -> None:
    """Run a plain eager forward pass over the images in eval mode."""
    network.eval()
    with torch.no_grad():
        for batch in images.split(batch_size):
            network(batch)


@torch.no_grad()
def accuracy(network: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Return the accuracy in eval mode, in per cent."""
    network.eval()
    right = [(network(x).argmax(1) == y).sum() for x, y in zip(test[0].split(256), test[1].split(256), strict=True)]
    return 100 * float(torch.stack(right).sum()) / len(test[1])


def contenders(keys: tuple[str, ...]) -> dict[str, type[Peer]]:
    """Return the adapters of the installed contenders by name."""
    found = (peer_class(key) for key in keys)
    return {cls.name: cls for cls in found if cls is not None}
