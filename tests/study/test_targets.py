"""Targets by text: sets, shifts, folders; wrong ones in one line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tl_lightning.data import TransferDataModule
from tl_lightning.errors import UserError
from tl_lightning.study.targets import parse_target, parse_targets


@pytest.fixture
def folder(tmp_path):
    """A folder of images in three classes, its name with a colon."""
    root = tmp_path / "leaves: 2024"
    for number, name in enumerate(("ash", "oak", "yew")):
        (root / name).mkdir(parents=True)
        for k in range(8):
            Image.fromarray(np.full((12, 12, 3), 20 * number + k, np.uint8)).save(root / name / f"{k}.png")
    return root


def test_a_set_alone_and_under_a_shift() -> None:
    plain, shifted, strong = parse_targets(["digits", "digits:invert", "elpv:gaussian_blur:5"])
    assert (plain.data, plain.shift, plain.num_classes) == ("digits", "none", 10)
    assert (shifted.base, shifted.shift, shifted.text) == ("digits", "invert", "digits:invert")
    assert (strong.data, strong.shift, strong.severity, strong.num_classes) == ("elpv", "gaussian_blur", 5, 2)
    assert plain.options()["corruption"] is None


def test_the_options_shift_every_part_alike() -> None:
    plain, inverted = (parse_target(text) for text in ("digits", "digits:invert"))
    first, second = (TransferDataModule(image_size=8, **target.options()) for target in (plain, inverted))
    first.setup()
    second.setup()
    for part in ("train_set", "val_set", "test_set"):
        assert (getattr(second, part).images == 255 - getattr(first, part).images).all()


def test_a_folder_of_ones_own(folder) -> None:
    target = parse_target(f"{folder}:fog:2")
    assert (target.data, target.data_dir, target.base) == ("imagefolder", str(folder), "leaves: 2024")
    assert (target.shift, target.severity, target.num_classes) == ("fog", 2, 3)
    data = TransferDataModule(image_size=12, samples_per_class=2, **target.options())
    data.setup()
    assert data.class_names == ["ash", "oak", "yew"]
    assert parse_target(str(folder)).shift == "none"
    assert parse_target("imagefolder", str(folder)).num_classes == 3


def test_the_folder_of_downloads_is_not_that_of_packaged_sets(folder) -> None:
    for name in ("elpv", "digits:invert", "scene_digits"):
        assert parse_target(name, str(folder)).data_dir is None
    assert parse_target("cifar10:fog", str(folder)).data_dir == str(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digitz", "did you mean digits"),
        ("digits:invertt", "did you mean invert"),
        ("digits:fog:9", "severity must be 1, 2, 3, 4 or 5, not 9"),
        ("digits:3", "severity without a shift"),
        ("./nowhere:fog", "no folder ./nowhere"),
        ("imagefolder", "imagefolder"),
    ],
)
def test_what_cannot_be_a_target_is_one_line(text, message) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as error:
        parse_target(text)
    assert "\n" not in str(error.value)


def test_a_target_twice_is_refused() -> None:
    with pytest.raises(UserError, match="twice"):
        parse_targets(["digits", "elpv", "digits"])
