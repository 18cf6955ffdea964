"""torchvision's sets are read from the files that torchvision writes; where they are missing, one line says what to do.

The files are miniatures with their own checksums in place of the published ones; the reading code is the real one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from published import WRITERS
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

from tl_lightning.data import TransferDataModule, torchvision_sets
from tl_lightning.errors import UserError

OWN_VALIDATION = {"dtd", "flowers102", "pcam"}


@pytest.fixture(autouse=True)
def no_set_in_memory() -> None:
    torchvision_sets._in_memory.clear()


def opened(name: str, root: Path, **kwargs) -> TransferDataModule:
    data = TransferDataModule(name, str(root), **kwargs)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("name", torchvision_sets.LOADERS)
def test_images_and_labels_belong_together(
    name: str, download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path, monkeypatch)
    data = opened(name, tmp_path, image_size=20, download=download)
    for part in (data.train_set, data.val_set, data.test_set):
        assert len(part) > 0
        assert part.shape[1] == data.card.channels
        levels = part.images.float().mean((1, 2, 3))
        assert torch.all((levels - (20 + 2 * part.labels)).abs() <= 0.9)
        assert part.labels.max() < data.num_classes
    shared = data.train_set.pixels is data.val_set.pixels
    assert shared == (name not in OWN_VALIDATION)


@pytest.mark.parametrize(
    ("name", "native"),
    [
        ("cifar10", lambda root: datasets.CIFAR10(root, train=False)),
        ("cifar100", lambda root: datasets.CIFAR100(root, train=False)),
        ("fashion_mnist", lambda root: datasets.FashionMNIST(root, train=False)),
        ("svhn", lambda root: datasets.SVHN(root, split="test")),
        ("stl10", lambda root: datasets.STL10(root, split="test")),
        ("pcam", lambda root: datasets.PCAM(root, split="test")),
    ],
)
def test_pixels_lie_as_torchvision_serves_them(
    name: str, native: Callable[[Path], Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path, monkeypatch)
    data = opened(name, tmp_path, image_size=96, download=False)
    theirs = native(tmp_path)
    for number in range(5):
        image, label = theirs[number]
        assert torch.equal(data.test_set.images[number], pil_to_tensor(image))
        assert data.test_set.labels[number] == label


def test_a_set_that_torchvision_reads_whole_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["svhn"](tmp_path, monkeypatch)
    first, second = opened("svhn", tmp_path, image_size=32), opened("svhn", tmp_path, image_size=32, seed=1)
    assert first.train_set.pixels.images.data_ptr() == second.train_set.pixels.images.data_ptr()


@pytest.mark.parametrize("name", torchvision_sets.LOADERS)
def test_missing_files_say_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened(name, tmp_path, download=False)
    message = str(caught.value)
    assert "\n" not in message
    if name == "pcam" and "h5py" in message:
        return
    for part in (f"data set {name}", str(tmp_path), "downloading is off", "http", "--data-dir", "elpv"):
        assert part in message


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded \(.*Name or service not known") as caught:
        opened("cifar10", tmp_path)
    assert "cifar-10-python.tar.gz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_altered_files_are_refused_before_they_are_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["cifar10"](tmp_path, monkeypatch)
    ran = tmp_path / "ran"
    bomb = f"cos\nsystem\n(S'touch {ran}'\ntR.".encode()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(bomb)
    with pytest.raises(UserError, match="not complete"):
        opened("cifar10", tmp_path, download=False)
    assert not ran.exists()


def folder_copy(root: Path, classes: int) -> None:
    for part, images in (("train", 4), ("test", 2)):
        for label in range(classes):
            (root / part / f"class {label}").mkdir(parents=True)
            for number in range(images):
                picture = Image.new("RGB", (32, 32), (20 + 2 * label,) * 3)
                picture.save(root / part / f"class {label}" / f"{number}.png")


def test_a_copy_in_image_folders_is_the_set(tmp_path: Path) -> None:
    folder_copy(tmp_path, 10)
    data = opened("cifar10", tmp_path, image_size=20)
    assert data.card.name == "cifar10"
    assert len(data.test_set) == 20
    assert torch.all((data.train_set.images.float().mean((1, 2, 3)) - (20 + 2 * data.train_set.labels)).abs() <= 0.9)


def test_a_folder_of_other_classes_is_no_copy(tmp_path: Path) -> None:
    folder_copy(tmp_path, 3)
    with pytest.raises(UserError, match="no copy of cifar10: it has train, test with 3 classes"):
        opened("cifar10", tmp_path)


def test_downloads_go_to_the_cache_folder(own_cache: Path) -> None:
    with pytest.raises(UserError, match=str(own_cache / "datasets")):
        TransferDataModule("dtd", download=False).setup()
