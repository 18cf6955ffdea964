"""The settings of the study of domain similarity: targets, training-set sizes, near and far domains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tl_lightning.data import DATASETS
from tl_lightning.study.near_far import Domain, parse_domains
from tl_lightning.study.settings import Settings
from tl_lightning.study.targets import Target, parse_targets


@dataclass
class DomainSettings(Settings):
    """Settings of this study. `data` and `samples_per_class` are not used: see `targets` and `train_images`.

    Args:
        targets: What to transfer to: SET, SET:SHIFT or SET:SHIFT:SEVERITY, SET being a name or your folder; or none.
        train_images: Training images of each target, in equal shares of its classes.
        source_images: Images of the source, written like a target; without them some distances are left out.
        sizes_target: Target of which the training-set size is varied.
        sizes: Training images a class on that target; all sizes get the same number of optimizer steps.
        published_epochs: Epochs of fine-tuning on all of ELPV's training images, as published; 0 leaves it out.
        published_size: Side in pixels of the images there; 0 for ``image_size``.
        published_flips: Mirror those images at random, left to right and top to bottom.
        near_far: Two domains, SET = CLASSES -> CLASSES, of which the first are pretrained on; empty for none.
        near_far_backbone: The network that is pretrained and transferred there.
        near_far_size: Side in pixels of the images there.
        near_far_epochs: Epochs of pretraining there.
        near_far_rate: Learning rate of pretraining there.
        near_far_images: Training images a class in pretraining there; all of them by default.
    """

    targets: list[str] = field(default_factory=lambda: ["digits", "elpv", "scene_digits"])
    train_images: int = 80
    source_images: str | None = None
    sizes_target: str = "elpv"
    sizes: list[int] = field(default_factory=lambda: [20, 160])
    published_epochs: int = 0
    published_size: int = 0
    published_flips: bool = False
    near_far: list[str] = field(default_factory=list)
    near_far_backbone: str = "resnet18"
    near_far_size: int = 32
    near_far_epochs: int = 8
    near_far_rate: float = 0.003
    near_far_images: int | None = None

    def target(self, text: object) -> Target:
        """Return one target."""
        return parse_targets([str(text)], self.data_dir)[0]

    def options(self, text: object, samples_per_class: int | None = None) -> dict[str, Any]:
        """Return the arguments of the data module that make a target with its training images."""
        target = self.target(text)
        samples_per_class = samples_per_class or max(2, self.train_images // target.num_classes)
        return {**target.options(), "samples_per_class": samples_per_class}

    def epochs_for(self, images: int) -> int:
        """Return the epochs that give the optimizer steps of `epochs` epochs of `train_images` images."""
        steps = self.epochs * -(-self.train_images // self.batch_size)
        return max(1, round(steps / -(-images // self.batch_size)))

    def overlap(self) -> str:
        """Return what the targets share with ImageNet, as far as it is known."""
        sets = {target.base: DATASETS[target.data] for target in parse_targets(self.targets, self.data_dir)}
        return "; ".join(
            f"{name}: {card.imagenet_overlap}" for name, card in sets.items() if card.overlapping_classes != 0
        )

    def small(self) -> DomainSettings:
        """Return the settings of the network that is pretrained here."""
        return replace(self, backbone=self.near_far_backbone, image_size=self.near_far_size, weights="none")

    def domains(self) -> list[Domain]:
        """Return the near and the far domain, or none."""
        return parse_domains(self.near_far, self.data_dir)
