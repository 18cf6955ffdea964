"""The registry of image classification sets, with a card for each."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tl_lightning.data.card import DatasetCard
from tl_lightning.data.folder import LAYOUT, load_image_folder
from tl_lightning.data.images import RawSet
from tl_lightning.data.packaged import load_elpv, load_sklearn_digits
from tl_lightning.data.scene_digits import load_scene_digits
from tl_lightning.data.torchvision_sets import load_torchvision
from tl_lightning.errors import UserError, unknown_name


def dataset_card(name: str) -> DatasetCard:
    """Return the card of a data set.

    Raises:
        UserError: There is no set of that name; the nearest names are suggested.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]


def _load_imagefolder(root: Path | None, download: bool) -> RawSet:
    if root is None:
        raise UserError(f"data set imagefolder needs a data directory (--data-dir ROOT): {LAYOUT}")
    return load_image_folder(root)


def _load_elpv(root: Path | None, download: bool) -> RawSet:
    return load_elpv(root)


def _load_digits(root: Path | None, download: bool) -> RawSet:
    return load_sklearn_digits(root)


def _load_scene_digits(root: Path | None, download: bool) -> RawSet:
    return load_scene_digits(root)


_CARDS = [
    DatasetCard(
        name="elpv",
        classes=2,
        train_images=2624,
        native_size=300,
        channels=1,
        imagenet_overlap="none: electroluminescence images of solar cells, far from photographs",
        overlapping_classes=0,
        licence="CC BY-NC-SA 4.0",
        source="Deitsch et al. 2019, Solar Energy 185; https://github.com/zae-bayern/elpv-dataset",
        load=_load_elpv,
    ),
    DatasetCard(
        name="digits",
        classes=10,
        train_images=1797,
        native_size=8,
        channels=1,
        imagenet_overlap="none: handwritten digits",
        overlapping_classes=0,
        licence="CC BY 4.0",
        source="Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits; sklearn.datasets.load_digits",
        load=_load_digits,
    ),
    DatasetCard(
        name="scene_digits",
        classes=10,
        train_images=600,
        native_size=32,
        channels=3,
        imagenet_overlap="none: handwritten digits in composed scenes",
        overlapping_classes=0,
        licence="CC BY 4.0",
        source="handwriting of sklearn.datasets.load_digits (Alpaydin and Kaynak 1998), composed by this package",
        load=_load_scene_digits,
    ),
    DatasetCard(
        name="cifar10",
        classes=10,
        train_images=50000,
        native_size=32,
        channels=3,
        imagenet_overlap="nine classes are ImageNet's too (airliner, sports car, many birds, cats, dogs, frogs, "
        "sorrel, ships, trucks); deer is not",
        overlapping_classes=9,
        licence="none stated",
        source="Krizhevsky 2009; https://www.cs.toronto.edu/~kriz/cifar.html",
        load=partial(load_torchvision, "cifar10"),
    ),
    DatasetCard(
        name="cifar100",
        classes=100,
        train_images=50000,
        native_size=32,
        channels=3,
        imagenet_overlap="about two thirds of the classes have ImageNet classes below or beside them (animals, "
        "vehicles, furniture); people, trees and most flowers have not",
        overlapping_classes=None,
        licence="none stated",
        source="Krizhevsky 2009; https://www.cs.toronto.edu/~kriz/cifar.html",
        load=partial(load_torchvision, "cifar100"),
    ),
    DatasetCard(
        name="fashion_mnist",
        classes=10,
        train_images=60000,
        native_size=28,
        channels=1,
        imagenet_overlap="grey pictograms of clothes; ImageNet has photographs of several (jersey, sandal, trench "
        "coat)",
        overlapping_classes=None,
        licence="MIT",
        source="Xiao et al. 2017; https://github.com/zalandoresearch/fashion-mnist",
        load=partial(load_torchvision, "fashion_mnist"),
    ),
    DatasetCard(
        name="svhn",
        classes=10,
        train_images=73257,
        native_size=32,
        channels=3,
        imagenet_overlap="none: house numbers",
        overlapping_classes=0,
        licence="non-commercial use only",
        source="Netzer et al. 2011; http://ufldl.stanford.edu/housenumbers/",
        load=partial(load_torchvision, "svhn"),
    ),
    DatasetCard(
        name="stl10",
        classes=10,
        train_images=5000,
        native_size=96,
        channels=3,
        imagenet_overlap="the images were taken from ImageNet, so pretraining may have seen them; all classes but "
        "deer are in ImageNet-1k",
        overlapping_classes=9,
        licence="ImageNet's terms (non-commercial research)",
        source="Coates et al. 2011; https://cs.stanford.edu/~acoates/stl10/",
        load=partial(load_torchvision, "stl10"),
    ),
    DatasetCard(
        name="eurosat",
        classes=10,
        train_images=27000,
        native_size=64,
        channels=3,
        imagenet_overlap="none: satellite images of land use",
        overlapping_classes=0,
        licence="MIT",
        source="Helber et al. 2019; https://github.com/phelber/EuroSAT",
        load=partial(load_torchvision, "eurosat"),
    ),
    DatasetCard(
        name="dtd",
        classes=47,
        train_images=1880,
        native_size=300,
        channels=3,
        imagenet_overlap="textures, not objects; honeycombed and cobwebbed resemble two ImageNet classes",
        overlapping_classes=2,
        licence="research only",
        source="Cimpoi et al. 2014; https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        load=partial(load_torchvision, "dtd"),
    ),
    DatasetCard(
        name="flowers102",
        classes=102,
        train_images=1020,
        native_size=500,
        channels=3,
        imagenet_overlap="flowers, of which ImageNet-1k names few (daisy)",
        overlapping_classes=1,
        licence="none stated",
        source="Nilsback and Zisserman 2008; https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        load=partial(load_torchvision, "flowers102"),
    ),
    DatasetCard(
        name="oxford_pets",
        classes=37,
        train_images=3680,
        native_size=300,
        channels=3,
        imagenet_overlap="21 of the 25 dog breeds and 3 of the 12 cat breeds are ImageNet classes",
        overlapping_classes=24,
        licence="CC BY-SA 4.0",
        source="Parkhi et al. 2012; https://www.robots.ox.ac.uk/~vgg/data/pets/",
        load=partial(load_torchvision, "oxford_pets"),
    ),
    DatasetCard(
        name="food101",
        classes=101,
        train_images=75750,
        native_size=512,
        channels=3,
        imagenet_overlap="a few dishes are ImageNet classes (pizza, hot dog, ice cream, guacamole, hamburger, "
        "burrito, carbonara)",
        overlapping_classes=7,
        licence="research only (the images belong to their photographers)",
        source="Bossard et al. 2014; https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        load=partial(load_torchvision, "food101"),
    ),
    DatasetCard(
        name="pcam",
        classes=2,
        train_images=262144,
        native_size=96,
        channels=3,
        imagenet_overlap="none: stained tissue under the microscope",
        overlapping_classes=0,
        licence="CC0",
        source="Veeling et al. 2018; https://github.com/basveeling/pcam",
        load=partial(load_torchvision, "pcam"),
    ),
    DatasetCard(
        name="imagefolder",
        classes=None,
        train_images=None,
        native_size=None,
        channels=3,
        imagenet_overlap="unknown: your own images",
        overlapping_classes=None,
        licence="your own",
        source=LAYOUT,
        load=_load_imagefolder,
    ),
]

DATASETS: dict[str, DatasetCard] = {card.name: card for card in _CARDS}
