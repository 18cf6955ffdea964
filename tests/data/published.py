"""Miniature copies of published data sets, in the files that torchvision reads.

An image's level says its class, so that a test sees whether images and labels belong together.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets


def level(label: int) -> int:
    return 20 + 2 * label


def levels(labels: np.ndarray, *shape: int) -> np.ndarray:
    """Return uint8 [len(labels), *shape], every image at its class's level plus one pattern of -1, 0 and 1."""
    pattern = np.random.default_rng(0).integers(-1, 2, shape)
    return (20 + 2 * labels.reshape(-1, *[1] * len(shape)) + pattern).astype(np.uint8)


def labels_of(classes: int, each: int) -> np.ndarray:
    return np.tile(np.arange(classes), each)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def fill(path: Path, label: int, size: tuple[int, int] = (30, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level(label),) * 3).save(path, quality=98)


def cifar(root: Path, patch: pytest.MonkeyPatch, name: str) -> None:
    dataset = getattr(datasets, name)
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "CIFAR10" else "fine_labels"
    for attribute in ("train_list", "test_list"):
        listed = []
        for file, _ in getattr(dataset, attribute):
            labels = labels_of(3, 4)
            content = {"data": levels(labels, 3072), key: labels.tolist()}
            (folder / file).write_bytes(pickle.dumps(content))
            listed.append([file, md5(folder / file)])
        patch.setattr(dataset, attribute, listed)
    meta = folder / dataset.meta["filename"]
    meta.write_bytes(pickle.dumps({dataset.meta["key"]: ["a", "b", "c"]}))
    patch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(meta)})


def fashion_mnist(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, each in (("train", 5), ("t10k", 2)):
        labels = labels_of(10, each)
        images = levels(labels, 28, 28)
        header = struct.pack(">iiii", 0x803, len(labels), 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">ii", 0x801, len(labels)) + labels.astype(np.uint8).tobytes()
        )


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    listed = {}
    for part, (url, file, _) in datasets.SVHN.split_list.items():
        labels = labels_of(10, 5)
        images = levels(labels, 32, 32, 3).transpose(1, 2, 3, 0)
        savemat(root / file, {"X": images, "y": np.where(labels == 0, 10, labels)[:, None]})
        listed[part] = [url, file, md5(root / file)]
    patch.setattr(datasets.SVHN, "split_list", listed)


def stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / datasets.STL10.base_folder
    folder.mkdir(parents=True)
    labels = labels_of(10, 3)
    for attribute in ("train_list", "test_list"):
        listed = []
        for file, _ in getattr(datasets.STL10, attribute):
            content = (labels + 1).astype(np.uint8) if "_y" in file else levels(labels, 3, 96, 96)
            (folder / file).write_bytes(content.tobytes())
            listed.append([file, md5(folder / file)])
        patch.setattr(datasets.STL10, attribute, listed)


def eurosat(root: Path, patch: pytest.MonkeyPatch) -> None:
    for label, name in enumerate(("AnnualCrop", "Forest", "River")):
        for number in range(6):
            fill(root / "eurosat" / "2750" / name / f"{name}_{number}.jpg", label, (64, 64))


def dtd(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for part, each in (("train", 4), ("val", 2), ("test", 3)):
        lines = []
        for label, name in enumerate(("banded", "cracked", "woven")):
            for number in range(each):
                fill(folder / "images" / name / f"{part}_{number}.jpg", label)
                lines.append(f"{name}/{part}_{number}.jpg")
        (folder / "labels" / f"{part}1.txt").write_text("\n".join(lines) + "\n")


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    labels = np.repeat(np.arange(102), 3)
    for number, label in enumerate(labels, start=1):
        fill(folder / "jpg" / f"image_{number:05d}.jpg", int(label), (12, 10))
    savemat(folder / "imagelabels.mat", {"labels": labels[None] + 1})
    ids = np.arange(1, len(labels) + 1).reshape(102, 3)
    savemat(folder / "setid.mat", {"trnid": ids[:, 0], "valid": ids[:, 1], "tstid": ids[:, 2]})
    files = {
        kind: (f"{stem}.mat", md5(folder / f"{stem}.mat"))
        for kind, stem in (("label", "imagelabels"), ("setid", "setid"))
    }
    patch.setattr(datasets.Flowers102, "_file_dict", {**datasets.Flowers102._file_dict, **files})


def oxford_pets(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part, each in (("trainval", 6), ("test", 2)):
        lines = []
        for label, name in enumerate(("Abyssinian", "american_bulldog", "Birman")):
            for number in range(each):
                fill(folder / "images" / f"{name}_{part}{number}.jpg", label)
                lines.append(f"{name}_{part}{number} {label + 1} 1 1")
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")


def food101(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for part, each in (("train", 6), ("test", 2)):
        listed = {}
        for label, name in enumerate(("apple_pie", "pizza", "waffles")):
            listed[name] = [f"{name}/{part}{number}" for number in range(each)]
            for stem in listed[name]:
                fill(folder / "images" / f"{stem}.jpg", label)
        (folder / "meta" / f"{part}.json").write_text(json.dumps(listed))


def pcam(root: Path, patch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    (root / "pcam").mkdir(parents=True)
    for files in datasets.PCAM._FILES.values():
        labels = labels_of(2, 6)
        with h5py.File(root / "pcam" / files["images"][0], "w") as file:
            file["x"] = levels(labels, 96, 96, 3)
        with h5py.File(root / "pcam" / files["targets"][0], "w") as file:
            file["y"] = labels.reshape(-1, 1, 1, 1).astype(np.uint8)


WRITERS = {
    "cifar10": lambda root, patch: cifar(root, patch, "CIFAR10"),
    "cifar100": lambda root, patch: cifar(root, patch, "CIFAR100"),
    "fashion_mnist": fashion_mnist,
    "svhn": svhn,
    "stl10": stl10,
    "eurosat": eurosat,
    "dtd": dtd,
    "flowers102": flowers102,
    "oxford_pets": oxford_pets,
    "food101": food101,
    "pcam": pcam,
}
