"""What a user may get wrong is one clear line that names the place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from pictures import picture, write_bomb, write_folder

from tl_lightning.data import TransferDataModule
from tl_lightning.data.folder import image_files
from tl_lightning.errors import UserError


def ready(root: Path, **kwargs) -> TransferDataModule:
    data = TransferDataModule("imagefolder", str(root), image_size=16, **kwargs)
    data.setup()
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", {"ant": 10, "bee": 10})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar"}, "unknown data set 'cifar': did you mean cifar10"),
        ({"corruption": "gausian_noise"}, "unknown corruption 'gausian_noise': did you mean gaussian_noise"),
        ({"severity": 6, "corruption": "fog"}, "severity must be 1, 2, 3, 4 or 5, not 6"),
        ({"corrupt_parts": ("tests",)}, "unknown part of the data 'tests': did you mean test"),
        ({"image_size": 7}, "image_size must be 8 to 4096 pixels, but is 7"),
        ({"image_size": 10**6}, "image_size must be 8 to 4096 pixels"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"samples_per_class": 0}, "samples_per_class must be at least 1"),
        ({"fraction": 0.0}, "fraction must be above 0"),
        ({"fraction": 1.5}, "fraction must be above 0"),
        ({"fraction": 0.5, "samples_per_class": 5}, "samples_per_class or fraction, not both"),
        ({"val_fraction": 1.0}, "val_fraction must lie between 0 and 1"),
        ({"label_noise": -0.1}, "label_noise must lie between 0 and 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"on_bad_image": "skp"}, "unknown value of on_bad_image 'skp': did you mean skip"),
        ({"corruption": "saturate"}, "changes nothing in the grey images of elpv"),
    ],
)
def test_impossible_arguments_are_refused_at_once(arguments: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        TransferDataModule(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def read_all(data: TransferDataModule) -> int:
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return sum(len(batch["label"]) for loader in loaders for batch in loader)


def refused(root: Path, message: str, **kwargs) -> None:
    with pytest.raises(UserError) as caught:
        ready(root, **kwargs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_wanted() -> None:
    with pytest.raises(UserError, match=r"imagefolder needs a data directory \(--data-dir ROOT\)"):
        TransferDataModule("imagefolder").setup()


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none does not exist")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is a file, not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no class folders")


def test_one_class(tmp_path: Path) -> None:
    refused(write_folder(tmp_path, {"only": 4}), "holds one class folder ('only')")


def test_a_class_folder_without_images_is_named(folder: Path) -> None:
    (folder / "cat").mkdir()
    (folder / "cat" / "notes.txt").write_text("none yet")
    refused(folder, f"class folder {folder / 'cat'} holds no images")


def test_classes_that_training_lacks_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 4, "b": 4})
    write_folder(tmp_path / "test", {"a": 2, "b": 2, "zebra": 2})
    refused(tmp_path, "has classes that the training part lacks: zebra")


def test_parts_without_training(tmp_path: Path) -> None:
    write_folder(tmp_path / "test", {"a": 4, "b": 4})
    refused(tmp_path, "no train folder")


def test_too_many_samples_name_the_class(folder: Path) -> None:
    refused(folder, "samples_per_class is 50, but class 'ant' has only 6 training images", samples_per_class=50)


def test_too_few_images_to_split(tmp_path: Path) -> None:
    refused(write_folder(tmp_path, {"a": 1, "b": 1}), "too few images for a test split")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"text", None])
def test_an_unreadable_image_is_named_or_skipped(folder: Path, content: bytes | None, workers: int) -> None:
    bad = folder / "bee" / "004.png"
    bad.write_bytes(bad.read_bytes()[:60] if content is None else content)
    with pytest.raises(UserError) as caught:
        read_all(ready(folder, workers=workers))
    assert str(bad) in str(caught.value)
    assert "--on-bad-image skip" in str(caught.value)
    assert "\n" not in str(caught.value)

    data = ready(folder, workers=workers, on_bad_image="skip")
    assert data.skipped == 1
    assert read_all(data) == 19


def test_a_class_of_unreadable_images_cannot_be_skipped(folder: Path) -> None:
    for path in (folder / "bee").iterdir():
        path.write_bytes(b"")
    refused(folder, "class 'bee' has no readable training images", on_bad_image="skip")


def test_links_back_to_a_folder_above_are_not_followed(folder: Path) -> None:
    (folder / "ant" / "loop").symlink_to(folder / "ant", target_is_directory=True)
    (folder / "ant" / "up").symlink_to(folder, target_is_directory=True)
    found = image_files(folder / "ant")
    assert len([path for path in found if "/up/" not in path]) == 10
    assert len(found) == len({os.path.realpath(path) for path in found})


def test_linked_class_folders_and_folders_below_are_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", {"ant": 4})
    elsewhere = write_folder(tmp_path / "elsewhere", {"bee": 4})
    (root / "bee").symlink_to(elsewhere / "bee", target_is_directory=True)
    write_folder(root / "ant", {"deeper": 3})
    data = ready(root)
    assert data.label_counts().sum() + data.label_counts("val").sum() + data.label_counts("test").sum() == 11


def test_names_in_other_scripts(tmp_path: Path) -> None:
    for name in ("кот", "犬", "été avec espace"):
        (tmp_path / name).mkdir()
        for number in range(4):
            picture(number).save(tmp_path / name / f"图 {number}.PNG")
    assert set(ready(tmp_path).class_names) == {"кот", "犬", "été avec espace"}


def test_hidden_and_other_files_are_left_out(folder: Path) -> None:
    (folder / "ant" / "._000.png").write_bytes(b"resource fork")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "ant" / "labels.csv").write_text("x")
    assert ready(folder).class_names == ["ant", "bee"]


def test_a_bomb_among_the_images_is_refused(folder: Path) -> None:
    write_bomb(folder / "ant" / "bomb.png", 20_000, 20_000)
    refused(folder, "bomb.png")


def test_elpv_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "tl_lightning\[demo\]"'):
        TransferDataModule("elpv").setup()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"labels\.csv does not exist"):
        TransferDataModule("elpv", str(tmp_path)).setup()


def test_a_class_of_trains_is_a_class(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", {"bus": 10, "car": 10, "train": 10})
    assert ready(root).class_names == ["bus", "car", "train"]
    write_folder(root / "train", {"diesel": 10, "steam": 10})
    refused(root, "train can be the training part or a class beside bus, car")


def test_parts_of_other_names_are_not_taken_for_classes(tmp_path: Path) -> None:
    for part in ("training_set", "test_set"):
        write_folder(tmp_path / "images" / part, {"ant": 10, "bee": 10})
    refused(tmp_path / "images", "has test_set, training_set but no train folder")


def test_a_hidden_folder_is_no_class(tmp_path: Path) -> None:
    for part in ("val", "test"):
        write_folder(tmp_path / "images" / part, {"ant": 10, "bee": 10})
    (tmp_path / "images" / ".cache").mkdir()
    refused(tmp_path / "images", "has test, val but no train folder")


def test_a_link_to_itself_is_passed_over(folder: Path) -> None:
    (folder / "ant" / "loop").symlink_to("loop")
    (folder / "loop.png").symlink_to("loop.png")
    assert read_all(ready(folder)) == 20
