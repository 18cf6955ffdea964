"""S5: images a second from files to float tensors of the training size."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Resize, ToTensor
from torchvision.transforms.functional import to_pil_image

from scenarios.measure import Prepare, Result, Row, Run, Target, interleave, ratio
from scenarios.workload import OURS, Workload
from tl_lightning.data import TransferDataModule

PILLOW = "ImageFolder, PIL, DataLoader"
WORKERS = 2


def data_path(work: Workload) -> Result:
    """S5: 1 pass over the images, decoding included, and as many passes as S1 has epochs."""
    passes = work.sizes.epochs
    result = Result(
        "S5", f"data path, {len(work.data.train_set):,} images to {work.sizes.image_size} px", reference=PILLOW
    )
    with tempfile.TemporaryDirectory() as folder:
        root = work.sizes.data_dir or _written(work, Path(folder))
        for count in sorted({1, passes}):
            runs = {_name(PILLOW, count): _pillow(work, root, count), _name(OURS, count): _ours(work, root, count)}
            seconds = interleave(runs, work.sizes.repeats)
            images = count * len(_module(work, root).train_set)
            result.rows += [
                Row("S5", n, "images/s", [images / s for s in values], count) for n, values in seconds.items()
            ]
        apart = _difference(work, root)
    faster = ratio(result.median(_name(OURS, passes)), result.median(_name(PILLOW, passes)))
    result.targets = [
        Target("S5", f"images/s / {PILLOW} with {WORKERS} workers, {passes} passes", faster, 3.0, "at least"),
        Target("S5", "largest difference of a pixel, grey levels", apart, 1.0, "at most"),
    ]
    result.notes.append("decoding is part of both; ours decodes once and resizes batches on one core's process")
    return result


def _name(who: str, passes: int) -> str:
    return f"{who}, {passes} pass{'es' if passes > 1 else ''}"


def _pillow(work: Workload, root: str, passes: int) -> Prepare:
    def prepare() -> Run:
        positions = _module(work, root).train_set.indices.tolist()
        subset = Subset(_folder(work, root), positions)
        loader = DataLoader(subset, work.sizes.batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True)

        def run() -> None:
            for _ in range(passes):
                for _batch in loader:
                    pass

        return run

    return prepare


def _ours(work: Workload, root: str, passes: int) -> Prepare:
    def prepare() -> Run:
        def run() -> None:
            data = _module(work, root)
            loader = data.train_dataloader()
            for epoch in range(passes):
                loader.sampler.set_epoch(epoch)
                for batch in loader:
                    data.on_after_batch_transfer(batch, 0)

        return run

    return prepare


def _module(work: Workload, root: str) -> TransferDataModule:
    """Return a data module, set up, whose only sizeable part is the training part."""
    per_class = None if work.sizes.data_dir is None else work.sizes.images // work.classes
    data = TransferDataModule(
        "imagefolder",
        root,
        samples_per_class=per_class,
        image_size=work.sizes.image_size,
        batch_size=work.sizes.batch_size,
        val_samples=16,
        test_samples=16,
    )
    data.setup()
    return data


def _folder(work: Workload, root: str) -> ImageFolder:
    size = work.sizes.image_size
    train = Path(root) / "train"
    return ImageFolder(train if train.is_dir() else root, Compose([Resize((size, size)), ToTensor()]))


def _difference(work: Workload, root: str) -> float:
    """Return the largest difference between the two, in grey levels, over 256 images."""
    data, folder = _module(work, root), _folder(work, root)
    chosen = torch.arange(0, len(data.train_set), max(1, len(data.train_set) // 256))
    ours = data.resize(data.train_set.gather(chosen))
    theirs: Tensor = torch.stack([folder[int(i)][0] for i in data.train_set.indices[chosen]])
    return float((ours - theirs).abs().max()) * 255


def _written(work: Workload, folder: Path) -> str:
    """Write the packaged images as files and return the folder."""
    for number, (image, label) in enumerate(zip(work.data.train_set.images, work.data.train_set.labels, strict=True)):
        path = folder / work.data.class_names[int(label)]
        path.mkdir(exist_ok=True)
        to_pil_image(image).save(path / f"{number:05d}.png")
    return str(folder)
