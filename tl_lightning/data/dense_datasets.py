"""The registry of sets for detection and segmentation, with a card for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tl_lightning.data import coco, masks, scenes, voc
from tl_lightning.data.annotations import AnnotatedSet, OnBad
from tl_lightning.data.cache import cache_root
from tl_lightning.data.dense_sources import BoxFiles, ComposedScenes, ExampleSource, MaskFiles
from tl_lightning.data.masks import VOID, MaskClasses
from tl_lightning.errors import UserError, unknown_name

Task = Literal["detection", "segmentation"]
Pair = tuple[Path, Path]  # image and mask

_VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class DenseRequest:
    """What a user asks of a set.

    Args:
        task: ``"detection"`` or ``"segmentation"``.
        root: The folder of the files, or of what torchvision downloads.
        class_names: The classes, for sets of the user's own files.
        void: Pixel values that are no class, for mask folders.
        on_bad: What to do with boxes that leave the image or have no area.
        download: Whether to download what is missing.
    """

    task: Task
    root: Path | None = None
    class_names: tuple[str, ...] | None = None
    void: tuple[int, ...] = ()
    on_bad: OnBad = "error"
    download: bool = True


@dataclass(frozen=True)
class RawDenseSet:
    """A set as published: its parts by name (``train`` and, where they exist, ``val`` and ``test``) and classes.

    For detection ``class_names[k]`` is label ``k + 1``; for segmentation it is class ``k``, background included.
    """

    parts: Mapping[str, ExampleSource]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class DenseCard:
    """What one should know of a set before transferring to it.

    Args:
        name: Name in the registry.
        tasks: What it is annotated for; the first is the default.
        imagenet_overlap: What the set shares with ImageNet-1k, in words.
        licence: Terms of use.
        source: Paper and page, or the layout of the user's own files.
        load: Reads the set.
        downloaded: Whether ``load`` fetches files that are not there.
    """

    name: str
    tasks: tuple[Task, ...]
    imagenet_overlap: str
    licence: str
    source: str
    load: Callable[[DenseRequest], RawDenseSet]
    downloaded: bool = False


def dense_card(name: str) -> DenseCard:
    """Return the card of a set.

    Raises:
        UserError: There is no set of that name; the nearest names are suggested.
    """
    if name not in DENSE_SETS:
        raise unknown_name("data set for detection or segmentation", name, DENSE_SETS)
    return DENSE_SETS[name]


def _load_scenes(request: DenseRequest) -> RawDenseSet:
    names = scenes.CLASS_NAMES if request.task == "detection" else ("background", *scenes.CLASS_NAMES)
    return RawDenseSet({part: ComposedScenes(part) for part in scenes.PARTS}, names)


def _load_voc_boxes(request: DenseRequest) -> RawDenseSet:
    return _boxes(voc.read_voc(_folder(request, "voc_boxes", voc.LAYOUT), request.class_names), request)


def _load_coco_boxes(request: DenseRequest) -> RawDenseSet:
    return _boxes(coco.read_coco(_folder(request, "coco_boxes", coco.LAYOUT), request.class_names), request)


def _boxes(annotated: AnnotatedSet, request: DenseRequest) -> RawDenseSet:
    parts = {part: BoxFiles(images, request.on_bad) for part, images in annotated.parts.items()}
    return RawDenseSet(parts, annotated.class_names)


def _load_mask_folder(request: DenseRequest) -> RawDenseSet:
    root = _folder(request, "mask_folder", masks.LAYOUT)
    pairs = masks.find_pairs(root)
    classes = masks.mask_classes(root, [mask for _, mask in pairs["train"]], request.class_names, request.void)
    return _masks(pairs, classes)


def _load_oxford_pet(request: DenseRequest) -> RawDenseSet:
    from torchvision.datasets import OxfordIIITPet

    def pairs(split: str, root: Path, download: bool) -> list[Pair]:
        found = OxfordIIITPet(root, split, target_types="segmentation", download=download)
        return [(Path(image), Path(mask)) for image, mask in zip(found._images, found._segs, strict=True)]

    classes = MaskClasses(("background", "pet"), (2, 1), (3, VOID))  # 3 is the border of the trimaps
    return _masks(_downloaded(request, "oxford_pet", pairs, {"train": "trainval", "test": "test"}), classes)


def _load_voc_segmentation(request: DenseRequest) -> RawDenseSet:
    from torchvision.datasets import VOCSegmentation

    def pairs(split: str, root: Path, download: bool) -> list[Pair]:
        found = VOCSegmentation(str(root), "2012", split, download=download)
        return [(Path(image), Path(mask)) for image, mask in zip(found.images, found.masks, strict=True)]

    classes = MaskClasses(_VOC_CLASSES, tuple(range(len(_VOC_CLASSES))))
    return _masks(_downloaded(request, "voc_segmentation", pairs, {"train": "train", "test": "val"}), classes)


def _masks(pairs: Mapping[str, Sequence[Pair]], classes: MaskClasses) -> RawDenseSet:
    return RawDenseSet({part: MaskFiles(found, classes) for part, found in pairs.items()}, classes.names)


def _downloaded(
    request: DenseRequest, name: str, pairs: Callable[[str, Path, bool], list[Pair]], parts: Mapping[str, str]
) -> dict[str, list[Pair]]:
    root = request.root or cache_root(None) / "datasets"
    with suppress(
        RuntimeError
    ):  # torchvision's word for files that are not there; VOC would unpack them anew each time
        return {part: pairs(split, root, False) for part, split in parts.items()}
    try:
        return {part: pairs(split, root, request.download) for part, split in parts.items()}
    except (RuntimeError, OSError, ValueError) as error:
        tried = "could not be downloaded" if request.download else "downloading is off"
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"data set {name} is not complete in {root} and {tried} ({reason}); name the folder that holds it "
            "(data_dir), or use scenes, voc_boxes, coco_boxes or mask_folder, which need no download"
        ) from error


def _folder(request: DenseRequest, name: str, layout: str) -> Path:
    if request.root is None:
        raise UserError(f"data set {name} needs a data directory (data_dir): {layout}")
    return request.root


_CARDS = [
    DenseCard(
        name="scenes",
        tasks=("detection", "segmentation"),
        imagenet_overlap="none: composed scenes of handwritten digits",
        licence="CC BY 4.0",
        source="composed by this package from sklearn.datasets.load_digits (Alpaydin and Kaynak 1998)",
        load=_load_scenes,
    ),
    DenseCard(
        name="voc_boxes",
        tasks=("detection",),
        imagenet_overlap="unknown: your own images",
        licence="your own",
        source=voc.LAYOUT,
        load=_load_voc_boxes,
    ),
    DenseCard(
        name="coco_boxes",
        tasks=("detection",),
        imagenet_overlap="unknown: your own images",
        licence="your own",
        source=coco.LAYOUT,
        load=_load_coco_boxes,
    ),
    DenseCard(
        name="mask_folder",
        tasks=("segmentation",),
        imagenet_overlap="unknown: your own images",
        licence="your own",
        source=masks.LAYOUT,
        load=_load_mask_folder,
    ),
    DenseCard(
        name="oxford_pet",
        tasks=("segmentation",),
        imagenet_overlap="21 of the 25 dog breeds and 3 of the 12 cat breeds are ImageNet classes",
        licence="CC BY-SA 4.0",
        source="Parkhi et al. 2012, CVPR; https://www.robots.ox.ac.uk/~vgg/data/pets/",
        load=_load_oxford_pet,
        downloaded=True,
    ),
    DenseCard(
        name="voc_segmentation",
        tasks=("segmentation",),
        imagenet_overlap="high: everyday objects in photographs, most classes are in ImageNet",
        licence="Flickr terms of use",
        source="Everingham et al. 2015, IJCV 111; http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        load=_load_voc_segmentation,
        downloaded=True,
    ),
]

DENSE_SETS: dict[str, DenseCard] = {card.name: card for card in _CARDS}
