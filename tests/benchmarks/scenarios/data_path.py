"""S5: images a second from files to float tensors of the training size."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Resize, ToTensor
from torchvision.transforms.functional import to_pil_image

from scenarios.measure import Prepare, Result, Row, Target, interleave, ratio
from scenarios.workload import OURS, Workload
from tl_lightning.data import TransferDataModule
from tl_lightning.data.store import forget_pixels

PILLOW = "ImageFolder, PIL, DataLoader"
WORKERS = 2


def data_path(work: Workload) -> Result:
    """S5: 1 pass over the images, decoding included, and as many passes as S1 has epochs."""
    passes = work.sizes.epochs
    result = Result("S5", f"data path, {len(work.data.train_set):,} images to {work.sizes.image_size} px")
    with tempfile.TemporaryDirectory() as folder:
        root = _image_files(work, Path(folder))
        images = {PILLOW: len(_folder(work, root)), OURS: len(_module(work, root).train_set)}
        makers = {PILLOW: _pillow, OURS: _ours}
        for count in sorted({1, passes}):
            seconds = interleave({n: make(work, root, count) for n, make in makers.items()}, work.sizes.repeats)
            for name, values in seconds.items():
                rates = [count * images[name] / s for s in values]
                result.rows.append(Row("S5", _name(name, count), "images/s", rates))
        apart = _difference(work, root)
    faster = ratio(result.median(_name(OURS, passes)), result.median(_name(PILLOW, passes)))
    result.targets = [
        Target("S5", f"images/s / {PILLOW} with {WORKERS} workers, {passes} passes", faster, 3.0, "at least"),
        Target("S5", "largest difference of a pixel, grey levels", apart, 1.0, "at most"),
    ]
    result.notes.append(
        "decoding is part of both, training of none; ours decodes once and resizes whole batches in one process"
    )
    return result


def _name(who: str, passes: int) -> str:
    return f"{who}, {passes} pass{'es' if passes > 1 else ''}"


def _pillow(work: Workload, root: str, passes: int) -> Prepare:
    def run() -> None:
        loader = DataLoader(
            _folder(work, root), work.sizes.batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True
        )
        for _ in range(passes):
            for _batch in loader:
                pass

    return lambda: run


def _ours(work: Workload, root: str, passes: int) -> Prepare:
    def run() -> None:
        forget_pixels()
        data = _module(work, root)
        loader = data.train_dataloader()
        for epoch in range(passes):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                data.on_after_batch_transfer(batch, 0)

    return lambda: run


def _module(work: Workload, root: str) -> TransferDataModule:
    """Return a data module, set up, with (nearly) all of the images in its training part."""
    sizes = work.sizes
    data = TransferDataModule(
        "imagefolder",
        root,
        image_size=sizes.image_size,
        batch_size=sizes.batch_size,
        val_samples=work.classes,
        test_samples=work.classes,
        val_fraction=0.01,
        test_fraction=0.01,
    )
    data.setup()
    return data


def _folder(work: Workload, root: str) -> ImageFolder:
    size = work.sizes.image_size
    return ImageFolder(root, Compose([Resize((size, size)), ToTensor()]))


def _difference(work: Workload, root: str) -> float:
    """Return the largest difference between the two, in grey levels, over 256 images."""
    data, folder = _module(work, root), _folder(work, root)
    chosen = torch.arange(0, len(data.train_set), max(1, len(data.train_set) // 256))
    ours = data.resize(data.train_set.gather(chosen))
    theirs: Tensor = torch.stack([folder[int(i)][0] for i in data.train_set.indices[chosen]])
    return float((ours - theirs).abs().max()) * 255


def _image_files(work: Workload, folder: Path) -> str:
    """Put the training images into a folder of their own, by class, as files; return it."""
    chosen, names = work.data.train_set, work.data.class_names
    originals = None
    if work.sizes.data_dir is not None:
        train = Path(work.sizes.data_dir) / "train"
        originals = ImageFolder(train if train.is_dir() else work.sizes.data_dir).samples
    for position, label in zip(chosen.indices.tolist(), chosen.labels.tolist(), strict=True):
        target = folder / names[label]
        target.mkdir(exist_ok=True)
        if originals is not None:
            source = Path(originals[position][0])
            shutil.copy(source, target / source.name)
        else:
            image = chosen.pixels.gather(torch.tensor([position]))[0]
            to_pil_image(image).save(target / f"{position:05d}.png")
    return str(folder)
