"""Folders of images and masks: what is read, and what is refused with the file's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotated import SIZE, write_masks
from pictures import picture
from PIL import Image

from tl_lightning.data.dense import DenseDataModule
from tl_lightning.data.masks import MaskClasses, read_mask
from tl_lightning.errors import UserError


def setup(root: Path, **options: object) -> DenseDataModule:
    data = DenseDataModule("mask_folder", str(root), image_size=SIZE, **options)  # type: ignore[arg-type]
    data.setup()
    return data


def test_masks_keep_their_classes_and_void(tmp_path):
    data = setup(write_masks(tmp_path, values=(0, 1, 2, 9)), void_ids=(9,))
    assert data.class_names == ["class 0", "class 1", "class 2"]
    mask = data.train_set.examples[0].mask
    assert set(np.unique(mask)) == {0, 1, 2, 255}
    values = read_mask(tmp_path / "masks" / f"{int(data.train_set.indices[0]):02d}.png")
    assert np.array_equal(mask == 255, values == 9)
    assert np.array_equal(mask == 2, values == 2)


def test_parts_are_those_of_the_folders(tmp_path):
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        write_masks(tmp_path / part, count)
    data = setup(tmp_path)
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [5, 2, 3]


def test_one_folder_is_split(tmp_path):
    data = setup(write_masks(tmp_path, 12))
    members = [set(s.indices.tolist()) for s in (data.train_set, data.val_set, data.test_set)]
    assert set.union(*members) == set(range(12))
    assert sum(map(len, members)) == 12
    assert all(members)


def test_classes_are_named_by_the_file_or_by_the_caller(tmp_path):
    root = write_masks(tmp_path, values=(0, 1, 2))
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    assert setup(root).class_names == ["sky", "road", "car"]
    assert setup(root, class_names=["a", "b", "c", "d"]).class_names == ["a", "b", "c", "d"]


def test_void_below_the_classes_shifts_none_of_them(tmp_path):
    data = setup(write_masks(tmp_path, values=(0, 1, 2)), void_ids=(0,), class_names=["road", "car"])
    assert set(np.unique(data.train_set.examples[0].mask)) == {0, 1, 255}


def test_unknown_class_ids_are_named_with_the_file(tmp_path):
    root = write_masks(tmp_path, values=(0, 1, 2, 7))
    with pytest.raises(UserError, match=r"masks/\d\d\.png has unknown class ids 2, 7; the classes are 0, 1 and void"):
        setup(root, class_names=["a", "b"])


def test_mask_of_another_size(tmp_path):
    root = write_masks(tmp_path)
    Image.fromarray(np.zeros((20, 60), np.uint8)).save(root / "masks" / "03.png")
    with pytest.raises(UserError, match=r"03\.png has 60 x 20 pixels, but image .*03\.jpg has 60 x 40"):
        setup(root)


def test_image_without_a_mask(tmp_path):
    root = write_masks(tmp_path)
    (root / "masks" / "02.png").unlink()
    with pytest.raises(UserError, match=r"image .*02\.jpg has no mask in .*masks"):
        setup(root)


def test_colour_mask(tmp_path):
    root = write_masks(tmp_path)
    picture(0, SIZE).save(root / "masks" / "01.png")
    with pytest.raises(UserError, match=r"01\.png is a colour image \(RGB\)"):
        setup(root)


@pytest.mark.parametrize("what", ["images/04.jpg", "masks/04.png"])
def test_unreadable_file(tmp_path, what):
    root = write_masks(tmp_path)
    path = root / what
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=rf"cannot read (image|mask) .*{path.name}"):
        setup(root)


def test_another_layout(tmp_path):
    with pytest.raises(UserError, match=r"images is not a folder; expected ROOT/\{train,val,test\}"):
        setup(tmp_path)
    with pytest.raises(UserError, match="at least two classes"):
        setup(write_masks(tmp_path, values=(0,)))


def test_palette_images_give_their_indices(tmp_path):
    mask = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).convert("P")
    mask.putpalette([value for k in range(6) for value in (k * 40, 0, 255)])
    mask.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_sixteen_bit_mask_within_a_byte(tmp_path):
    Image.fromarray(np.array([[0, 3], [255, 1]], np.uint16)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 3], [255, 1]]
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="class ids from 0 to 300"):
        read_mask(tmp_path / "mask.png")


def test_translation_keeps_the_order_of_the_values():
    classes = MaskClasses(("background", "pet"), (2, 1), (3, 255))
    assert classes.translate(np.array([[1, 2, 3, 255]], np.uint8), "x").tolist() == [[1, 0, 255, 255]]


def test_images_of_sixteen_bits_and_transparent_ones_are_read_as_in_classification(tmp_path):
    root = write_masks(tmp_path, 12)
    for path in sorted((root / "images").glob("*.jpg")):
        path.unlink()
        Image.fromarray(np.full(SIZE, 32768, np.uint16)).save(path.with_suffix(".png"))
    Image.new("RGBA", SIZE[::-1], (0, 0, 0, 0)).save(root / "images" / "03.png")
    data = setup(root)
    means = {
        int(i): example.image.mean()
        for part in (data.train_set, data.val_set, data.test_set)
        for i, example in zip(part.indices, part.examples, strict=True)
    }
    assert means.pop(3) == 255
    assert set(means.values()) == {128}


def test_masks_of_0_and_255_are_refused_where_255_is_void(tmp_path):
    root = write_masks(tmp_path, values=(0, 255))
    with pytest.raises(UserError, match=r"all training masks hold 0 and else only void \(255\)"):
        setup(root, class_names=["background", "lesion"])


def test_two_images_of_one_name_are_refused(tmp_path):
    root = write_masks(tmp_path)
    picture(0, SIZE).save(root / "images" / "00.png")
    with pytest.raises(UserError, match=r"00\.jpg and 00\.png have the same name"):
        setup(root)
