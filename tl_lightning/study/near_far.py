"""Near and far targets in a crossed design: networks of one's own from two domains, each taken to both.

What makes a domain a good source, or a target hard, is in the near and the far arms alike and cancels in the mean of
``near - far``: what is left is the distance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tl_lightning.data import TransferDataModule
from tl_lightning.errors import UserError
from tl_lightning.study.above_chance import train_and_test_above_chance
from tl_lightning.study.comparison import gain
from tl_lightning.study.design import Arm, Trial
from tl_lightning.study.settings import Settings
from tl_lightning.study.source import pretrained_on, source_columns, sources
from tl_lightning.study.statistics import shared
from tl_lightning.study.targets import Target, parse_target
from tl_lightning.study.training import build_module, data_module
from tl_lightning.study.transfer_scores import measure_scores

NAMES = ("A", "B")


@dataclass(frozen=True)
class Domain:
    """A set of images of which some classes are a source and others a target.

    Attributes:
        images: The set, under a shift or not.
        known: Classes to pretrain on.
        wanted: Classes to transfer to.
    """

    images: Target
    known: tuple[str, ...]
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class Pretraining:
    """How the networks of the domains are made.

    Attributes:
        epochs: Epochs of pretraining.
        learning_rate: Its learning rate.
        samples_per_class: Its training images a class; all of them where None.
    """

    epochs: int
    learning_rate: float
    samples_per_class: int | None = None


def parse_domains(texts: Sequence[str], data_dir: str | None = None) -> list[Domain]:
    """Return the two domains of texts such as ``digits:invert = 0,1,2,3 -> 4,5,6,7``; none for no text.

    Raises:
        UserError: There is one text or more than two, or one of another form.
    """
    if len(texts) not in (0, 2):
        raise UserError(f"near_far must name two domains, or none, not {len(texts)}")
    return [_parse(text, data_dir) for text in texts]


def _parse(text: str, data_dir: str | None) -> Domain:
    images, equals, classes = text.partition("=")
    known, arrow, wanted = classes.partition("->")
    if not equals or not arrow:
        raise UserError(f"near_far domain {text!r} must be written SET = CLASS,CLASS -> CLASS,CLASS")
    names = (tuple(name.strip() for name in part.split(",")) for part in (known, wanted))
    return Domain(parse_target(images.strip(), data_dir), *names)


def check_domains(domains: Sequence[Domain], settings: Settings) -> None:
    """Raise ``UserError`` for classes, images or a network that no trial could run with."""
    for domain in domains:
        for classes in (domain.known, domain.wanted):
            images = data_module(settings, settings.seed_list()[0], **domain.images.options(), classes=classes)
            build_module(0, settings.backbone, "none", images.num_classes, 1e-3, settings, {})


def crossed_arms(methods: Sequence[str]) -> list[Arm]:
    """Return an arm for each source, target and method."""
    return [
        Arm(
            arm_name(source, target, method),
            {"part": "near and far", "source": source, "to": target, "near": source == target, "method": method},
        )
        for target in NAMES
        for source in NAMES
        for method in methods
    ]


def arm_name(source: str, target: str, method: str) -> str:
    """Return the name of the arm that takes a network of one domain to the other classes of one."""
    return f"domain {source} to {target}, {method}"


def run_crossed(
    trial: Trial,
    settings: Settings,
    domains: Sequence[Domain],
    pretraining: Pretraining,
    *,
    samples_per_class: int,
    **options: Any,
) -> dict[str, Any]:
    """Pretrain on the known classes of the arm's source (once a seed), transfer to the wanted ones of its target.

    Args:
        trial: Its arm is one of ``crossed_arms``.
        settings: Of the small network: backbone, image size.
        domains: The two domains.
        pretraining: How the source network is made.
        samples_per_class: Training images of each class of the target.
        options: Further arguments of ``fit_classifier``. With a frozen backbone the record holds the scores, too.
    """
    source, target = (domains[NAMES.index(str(trial.arm.factors[name]))] for name in ("source", "to"))
    path = pretrained_on(
        dataclasses.replace(settings, data=source.images.data, data_dir=source.images.data_dir),
        source.known,
        trial.seed,
        folder=sources(trial),
        epochs=pretraining.epochs,
        learning_rate=[pretraining.learning_rate],
        samples_per_class=pretraining.samples_per_class,
        data_options=source.images.options(),
    )

    def inspect(module: Any, images: TransferDataModule) -> Mapping[str, Any]:
        more = {"classes": source.known, "samples_per_class": pretraining.samples_per_class}
        seen = data_module(settings, trial.seed, **source.images.options(), **more)
        names = {"backbone": settings.backbone, "weights": str(path)}
        return measure_scores(module, images, settings, trial.seed, **names, source=seen)

    record = train_and_test_above_chance(
        trial,
        settings,
        weights=str(path),
        data_options={
            **target.images.options(),
            "classes": target.wanted,
            "samples_per_class": samples_per_class,
        },
        inspect=inspect if options.get("freezing") == "head" else None,
        **options,
    )
    weights = f"own, {source.images.text}: {','.join(source.known)}"
    return {
        **record,
        "data": target.images.text,
        "image_size": settings.image_size,
        "weights": weights,
        **source_columns(path),
    }


def near_minus_far(results: pd.DataFrame, method: str, metric: str) -> dict[Hashable, float]:
    """Return by seed how much better the near source is than the far one, the mean over the two targets.

    Only the seeds that ended all four arms are there: none where an arm is missing.
    """
    gaps = []
    for target, other in (NAMES, NAMES[::-1]):
        pair = (arm_name(target, target, method), arm_name(other, target, method))
        if not set(pair) <= set(results["arm"]):
            return {}
        gaps.append(gain(results, pair, metric))
    first, second = shared(*gaps)
    return {seed: float(np.mean([first[seed], second[seed]])) for seed in first}
