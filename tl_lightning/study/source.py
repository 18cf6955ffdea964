"""Networks of one's own to transfer from: pretrained on some classes of a set, kept as a checkpoint.

In a study, once for each seed whoever asks first::

    path = study.pretrained_on(settings, ["0", "1", "2"], trial.seed, folder=study.sources(trial), epochs=30)
    record = study.train_and_test(trial, settings, weights=str(path), data_options={"classes": ["3", "4", "5"]})
    record |= {"weights": "own, classes 0 1 2", **study.source_columns(path)}

The record says whether the network had been trained to a plateau. On the command line::

    python -m tl_lightning.study.source --data digits --classes 0,1,2,3,4 --backbone resnet18 --out source.pt
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pickle
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tl_lightning.data import TransferDataModule
from tl_lightning.errors import UserError
from tl_lightning.paths import user_path
from tl_lightning.study.atomic import plain
from tl_lightning.study.cli import StudyParser, _quiet, _underscored, check, fail
from tl_lightning.study.design import Arm, Trial
from tl_lightning.study.environment import environment
from tl_lightning.study.fitting import Fits
from tl_lightning.study.lock import folder_lock
from tl_lightning.study.plateau import reached_plateau
from tl_lightning.study.settings import Settings
from tl_lightning.study.step_budget import Budget, step_budget
from tl_lightning.study.training import data_module, fit_classifier

WEIGHTS = "weights.pt"
VALIDATIONS = 12  # at most so many, where steps are given: then epochs may be many and short
PATIENCE_SECONDS = 24 * 3600.0  # to wait for another process that trains the same network


def sources(trial: Trial) -> Path:
    """Return the folder, beside those of the trials, of the networks that the trials of a study share."""
    return trial.folder.parent / ".sources"  # no trial's name begins with a dot


def pretrained_on(
    settings: Settings,
    classes: Sequence[str] | None,
    seed: int,
    *,
    folder: Path,
    backbone: str | None = None,
    weights: str = "none",
    epochs: int | None = None,
    steps: int | None = None,
    learning_rate: float | Sequence[float] | None = None,
    samples_per_class: int | None = None,
    data_options: Mapping[str, Any] | None = None,
) -> Path:
    """Pretrain a backbone on some classes of a set, or return what an earlier call with the same arguments kept.

    The same arguments, settings, images and software give the same network. Other processes that ask for it at the
    same time wait for the one that trains it. The file is there in full or not at all.

    Args:
        settings: Data, image size, batch size, optimiser and device; pass ``dataclasses.replace(settings, data=...)``
            for another set than the study's own.
        classes: Names of the source classes; all of the set's where None.
        seed: Fixes initialisation, validation split, subset and order of batches.
        folder: Where to keep it: ``sources(trial)`` in a study.
        backbone: Another backbone than that of the settings.
        weights: What to begin with; random weights by default, whatever the settings say.
        epochs: Another number of epochs than that of the settings.
        steps: Optimizer steps in place of epochs, rounded up to whole epochs: for a control that trains as long as a
            source with more images.
        learning_rate: One or several to try, by default those of the settings; the validation part of the source
            classes selects.
        samples_per_class: Training images of each source class; all of them where None, whatever the settings say.
        data_options: Further arguments of ``TransferDataModule``.

    Returns:
        Path of a checkpoint, to be given as ``weights``. ``source_record`` says what is in it.

    Raises:
        UserError: A class, backbone or value that cannot be.
    """
    if steps is not None and epochs is not None:
        raise UserError("a source network takes epochs or steps, not both")
    rates = settings.rate_list() if learning_rate is None else learning_rate
    rates = [float(rates)] if isinstance(rates, int | float) else sorted(rates)
    settings = dataclasses.replace(settings, learning_rates=rates)
    options: dict[str, Any] = {**(data_options or {}), "samples_per_class": samples_per_class}
    if classes is not None:
        options["classes"] = tuple(classes)
    images = data_module(settings, seed, **options)
    budget = Budget(epochs or settings.epochs, 1)
    if steps is not None:
        budget = step_budget(steps, len(images.train_set), settings.batch_size, VALIDATIONS)
    what = _identity(settings, images, seed, backbone or settings.backbone, weights, budget.epochs)
    key = hashlib.sha256(json.dumps(plain(what), sort_keys=True).encode()).hexdigest()[:12]
    own = user_path(folder) / f"{what['backbone']}-{key}"
    own.mkdir(parents=True, exist_ok=True)
    with folder_lock(own, PATIENCE_SECONDS):
        if not (own / WEIGHTS).exists():
            trial = Trial("source", Arm("pretraining"), seed, own)
            fits = fit_classifier(
                trial,
                settings,
                backbone=backbone,
                weights=weights,
                epochs=budget.epochs,
                callbacks=budget.callbacks,
                data_options=options,
                learning_rates=rates,
            )
            _keep(own / WEIGHTS, fits, {**what, "train_images": len(images.train_set)})
    return own / WEIGHTS


def _identity(
    settings: Settings, images: TransferDataModule, seed: int, backbone: str, weights: str, epochs: int
) -> dict[str, Any]:
    """Return what decides a source network: two calls that agree in it get the same one."""
    return {
        "data": settings.data,
        "classes": images.class_names,
        "seed": seed,
        "backbone": backbone,
        "start": weights,
        "image_size": settings.image_size,
        "epochs": epochs,
        "batch_size": settings.batch_size,
        "learning_rates": settings.rate_list(),
        "optimizer": settings.optimizer,
        "weight_decay": settings.weight_decay,
        "precision": settings.precision,
        "data_fingerprint": images.fingerprint("train"),
        "val_fingerprint": images.fingerprint("val"),
        **environment(),
    }


def source_record(path: str | Path) -> dict[str, Any]:
    """Return what is known of a network that ``pretrained_on`` kept.

    Returns:
        ``data``, ``classes``, ``seed``, ``backbone``, ``epochs``, ``learning_rate`` (the selected one),
        ``val_accuracy`` (on the source classes), ``reached_plateau``, ``train_images``, ``steps``, ``train_seconds``
        and the rest of what its key is made of.

    Raises:
        UserError: The file is no such network.
    """
    try:
        return dict(torch.load(user_path(path), map_location="cpu", weights_only=True)["record"])
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a network that pretrained_on kept") from error


def source_columns(path: str | Path) -> dict[str, Any]:
    """Return what a trial's record should say of the network that it began with, each name begins with ``source_``."""
    names = ("epochs", "steps", "train_images", "learning_rate", "val_accuracy", "reached_plateau", "train_seconds")
    record = source_record(path)
    return {f"source_{name}": record[name] for name in names}


def _keep(path: Path, fits: Fits, what: Mapping[str, Any]) -> None:
    """Write backbone and record at once."""
    best, per_epoch = fits.best, math.ceil(what["train_images"] / what["batch_size"])
    record = {
        **what,
        "learning_rate": best.lr,
        "learning_rate_at_edge": len(fits.candidates) > 2
        and best.lr in (what["learning_rates"][0], what["learning_rates"][-1]),
        "steps": per_epoch * fits.epochs,
        "val_accuracy": best.validation["val/accuracy"],
        "reached_plateau": reached_plateau([epoch[fits.metric] for epoch in best.curve if fits.metric in epoch]),
        "train_seconds": fits.train_seconds,
        "curve": best.curve,
    }
    state = {name: value.cpu() for name, value in best.module.backbone.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save({"state_dict": state, "record": plain(record)}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


# %% Command line
def pretrain(
    out: str,
    data: str = "cifar10",
    data_dir: str | None = None,
    classes: str | None = None,
    backbone: str = "resnet18",
    weights: str = "none",
    image_size: int = 32,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rates: float | list[float] = 1e-3,
    samples_per_class: int | None = None,
    seed: int = 0,
    gpus: int | None = None,
) -> dict[str, Any]:
    """Pretrain a network on some classes of an image set, for ``--weights FILE`` of any study.

    Args:
        out: File to write.
        data: Name of the image set; imagefolder for your own images.
        data_dir: Folder of the image set.
        classes: Names of the classes, with commas between them; all by default.
        backbone: A torchvision classification model, or efficientnet_lite0, 1 or 2.
        weights: What to begin with: none, a torchvision weights name, or the path of a checkpoint.
        image_size: Side in pixels to which images are resized.
        epochs: Epochs of training.
        batch_size: Images a training step.
        learning_rates: Learning rates to try; the validation accuracy selects.
        samples_per_class: Training images a class; all of them by default.
        seed: Fixes initialisation, validation split, subset and order of batches.
        gpus: Number of GPUs to use at most; by default one if there is one, 0 for the CPU.

    Returns:
        The record of the network.
    """
    target = user_path(out)
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"--out {out} must be a file in a folder that exists")
    settings = Settings(
        gpus=gpus,
        backbone=backbone,
        weights=weights,
        data=data,
        data_dir=data_dir,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=learning_rates,
        samples_per_class=samples_per_class,
        seeds=[seed],
    )
    check(settings)
    work = target.with_name(f".{target.name}.work")  # an interrupted call leaves it, and the same call goes on there
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    path = pretrained_on(settings, names, seed, folder=work, weights=weights, samples_per_class=samples_per_class)
    os.replace(path, target)
    shutil.rmtree(work, ignore_errors=True)
    return source_record(target)


def main(argv: list[str] | None = None) -> None:
    """Run ``pretrain`` from the command line."""
    parser = StudyParser(prog="python -m tl_lightning.study.source")
    parser.add_function_arguments(pretrain)
    given = sys.argv[1:] if argv is None else argv
    values = parser.parse_args([_underscored(token, set()) for token in given]).as_dict()
    _quiet()
    try:
        record = pretrain(**values)
    except UserError as error:
        fail(str(error))
    plateau = {
        True: "a plateau was reached",
        False: "still improving at the end",
        None: "too few epochs to see a plateau",
    }
    print(
        f"{values['out']}: {record['backbone']} on {len(record['classes'])} classes of {record['data']} "
        f"({', '.join(record['classes'])}), validation accuracy {record['val_accuracy']:.3f} after {record['epochs']} "
        f"epochs at learning rate {record['learning_rate']:g}, {plateau[record['reached_plateau']]}"
    )


if __name__ == "__main__":
    main()
