"""Data sets that torchvision downloads: its classes find the files, the images are decoded by this package.

Every archive's MD5 is checked by torchvision before it is unpacked, and CIFAR's pickles before they are read. Copies of
CIFAR in image folders ``ROOT/{train,test}/<class>/*`` (as fast.ai's) are read as well, as they are.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tl_lightning.data.cache import cache_root
from tl_lightning.data.folder import load_image_folder
from tl_lightning.data.hdf5 import Hdf5Source
from tl_lightning.data.images import RawPart, RawSet
from tl_lightning.data.sources import ArraySource, FileSource
from tl_lightning.errors import UserError

_TIMEOUT = 30.0  # seconds without an answer; urllib would wait for ever
_DIGITS = tuple("0123456789")

Read = tuple[RawPart, tuple[str, ...]]  # a part and the names of the classes
Reader = Callable[[Path, bool, dict[str, Any]], Read]

_in_memory: dict[tuple[str, Path], RawSet] = {}  # sets that torchvision reads whole: trials of a study share them


def load_torchvision(name: str, root: Path | None, download: bool) -> RawSet:
    """Load one of torchvision's data sets.

    Args:
        name: A key of ``LOADERS``.
        root: Folder that holds (or will hold) what torchvision downloads; by default one in the package's cache.
        download: Whether to download what is missing.

    Raises:
        UserError: The files are not there and cannot be downloaded; says where from and where to.
    """
    root = cache_root(None) / "datasets" if root is None else root
    if (name, root) in _in_memory:
        return _in_memory[name, root]
    if name in FOLDER_COPIES and (root / "train").is_dir():
        return _folder_copy(name, root)
    read, parts, url = LOADERS[name]
    loaded = {}
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
        with _download_timeout():
            for part, arguments in parts.items():
                loaded[part] = read(root, download, arguments)
    except (RuntimeError, OSError, ValueError, ImportError, EOFError) as error:
        raise _not_available(name, root, url, download, error) from error
    raw = RawSet({part: loaded[part][0] for part in loaded}, loaded["train"][1])
    if all(isinstance(part.source, ArraySource) for part in raw.parts.values()):
        _in_memory.clear()  # at most one: the largest takes half a gibibyte
        _in_memory[name, root] = raw
    return raw


def _folder_copy(name: str, root: Path) -> RawSet:
    raw = load_image_folder(root)
    if len(raw.class_names) != FOLDER_COPIES[name] or not {"train", "test"} <= set(raw.parts):
        raise UserError(
            f"{root} is no copy of {name}: it has {', '.join(raw.parts)} with {len(raw.class_names)} classes where "
            f"train and test with {FOLDER_COPIES[name]} are expected; for images of your own use imagefolder"
        )
    return raw


def _array_part(images: np.ndarray[Any, Any] | torch.Tensor, labels: Any) -> RawPart:
    pixels = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    return RawPart(ArraySource(pixels.contiguous()), np.asarray(labels, dtype=np.int64))


def _file_part(paths: Any, labels: Any) -> RawPart:
    return RawPart(FileSource([str(path) for path in paths]), np.asarray(labels, dtype=np.int64))


def _torchvision(class_name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(importlib.import_module("torchvision.datasets"), class_name)(*args, **kwargs)


def _cifar(class_name: str) -> Reader:
    def read(root: Path, download: bool, arguments: dict[str, Any]) -> Read:
        found = _torchvision(class_name, root, download=download, **arguments)
        return _array_part(found.data.transpose(0, 3, 1, 2), found.targets), tuple(found.classes)

    return read


def _fashion_mnist(root: Path, download: bool, arguments: dict[str, Any]) -> Read:
    found = _torchvision("FashionMNIST", root, download=download, **arguments)
    return _array_part(found.data[:, None], found.targets), tuple(found.classes)


def _svhn(root: Path, download: bool, arguments: dict[str, Any]) -> Read:
    found = _torchvision("SVHN", root, download=download, **arguments)
    return _array_part(found.data, found.labels), _DIGITS


def _stl10(root: Path, download: bool, arguments: dict[str, Any]) -> Read:
    found = _torchvision("STL10", root, download=download, **arguments)
    names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    return _array_part(found.data, found.labels), names


def _eurosat(root: Path, download: bool, arguments: dict[str, Any]) -> Read:
    found = _torchvision("EuroSAT", root, download=download)
    paths, labels = zip(*found.samples, strict=True)
    return _file_part(paths, labels), tuple(found.classes)


def _file_list(class_name: str, files: str = "_image_files") -> Reader:
    def read(root: Path, download: bool, arguments: dict[str, Any]) -> Read:
        found = _torchvision(class_name, root, download=download, **arguments)
        return _file_part(getattr(found, files), found._labels), tuple(found.classes)

    return read


def _pcam(root: Path, download: bool, arguments: dict[str, Any]) -> Read:
    found = _torchvision("PCAM", root, download=download, **arguments)
    files = {kind: found._base_folder / found._FILES[arguments["split"]][kind][0] for kind in ("images", "targets")}
    labels = Hdf5Source(files["targets"], "y").array().reshape(-1)
    return RawPart(Hdf5Source(files["images"], "x"), labels.astype(np.int64)), ("normal", "tumor")


_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}

# name: (reader, arguments of torchvision's class for every published part, where the files come from)
LOADERS: dict[str, tuple[Reader, dict[str, dict[str, Any]], str]] = {
    "cifar10": (_cifar("CIFAR10"), _TRAIN_FLAG, "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    "cifar100": (_cifar("CIFAR100"), _TRAIN_FLAG, "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
    "fashion_mnist": (_fashion_mnist, _TRAIN_FLAG, "https://github.com/zalandoresearch/fashion-mnist"),
    "svhn": (_svhn, _TRAIN_TEST, "http://ufldl.stanford.edu/housenumbers/"),
    "stl10": (_stl10, _TRAIN_TEST, "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"),
    "eurosat": (_eurosat, {"train": {}}, "https://huggingface.co/datasets/torchgeo/eurosat (EuroSAT.zip)"),
    "dtd": (_file_list("DTD"), _THREE, "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"),
    "flowers102": (_file_list("Flowers102"), _THREE, "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"),
    "oxford_pets": (
        _file_list("OxfordIIITPet", "_images"),
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    "food101": (_file_list("Food101"), _TRAIN_TEST, "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"),
    "pcam": (_pcam, _THREE, "https://github.com/basveeling/pcam"),
}


FOLDER_COPIES = {"cifar10": 10, "cifar100": 100}  # number of classes


def _not_available(name: str, root: Path, url: str, download: bool, error: Exception) -> UserError:
    tried = "could not be downloaded" if download else "downloading is off"
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(
        f"data set {name} is not complete in {root} and {tried} ({reason}); fetch {url} and unpack it there as "
        "torchvision does, name the folder that holds it with --data-dir, or use elpv, digits or imagefolder, "
        "which need no download"
    )


@contextmanager
def _download_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
