"""Pascal VOC and COCO annotations: read into one form, and refused with one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from annotated import SIZE, coco_content, voc_xml, write_coco, write_voc
from pictures import picture

from tl_lightning.data.annotations import checked
from tl_lightning.data.coco import read_coco
from tl_lightning.data.dense import DenseDataModule
from tl_lightning.data.voc import read_voc
from tl_lightning.errors import UserError

ORDER = ["cell", "dot"]


def message_of(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def setup(name: str, root: Path, **options: object) -> DenseDataModule:
    data = DenseDataModule(name, str(root), image_size=32, **options)  # type: ignore[arg-type]
    data.setup()
    return data


def test_voc_boxes_labels_and_sizes(tmp_path):
    found = read_voc(write_voc(tmp_path, images=4))
    assert found.class_names == ("cell", "dot")
    assert list(found.parts) == ["train"]
    second = found.parts["train"][1]
    assert second.boxes.tolist() == [[1, 5, 21, 25], [30, 10, 40, 20]]
    assert second.labels.tolist() == [1, 2]
    assert second.size == SIZE
    assert second.path.name == "01.jpg"


def test_voc_lists_decide_the_parts(tmp_path):
    root = write_voc(tmp_path, splits={"train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7, 8], "trainval": range(6)})
    parts = read_voc(root).parts
    assert {part: [image.path.stem for image in images] for part, images in parts.items()} == {
        "train": ["00", "01", "02", "03"],
        "val": ["04", "05"],
        "test": ["06", "07", "08"],
    }


def test_voc_validation_images_are_the_test_part_where_there_is_no_other(tmp_path):
    parts = read_voc(write_voc(tmp_path, splits={"train": range(6), "val": [6, 7]})).parts
    assert {part: len(images) for part, images in parts.items()} == {"train": 6, "test": 2}


def test_voc_trainval_serves_where_there_is_no_train_list(tmp_path):
    parts = read_voc(write_voc(tmp_path, splits={"trainval": range(6), "test": [6, 7]})).parts
    assert {part: len(images) for part, images in parts.items()} == {"train": 6, "test": 2}


def test_voc_difficult_objects_are_marked(tmp_path):
    root = write_voc(tmp_path, images=3)
    (root / "Annotations" / "00.xml").write_text(voc_xml("00.jpg", [("cell", (0, 0, 5, 5))], difficult=1))
    assert read_voc(root).parts["train"][0].crowd.tolist() == [True]


def test_voc_image_is_found_by_the_stated_name_where_names_differ(tmp_path):
    root = write_voc(tmp_path, images=3)
    (root / "JPEGImages" / "00.jpg").rename(root / "JPEGImages" / "first.jpg")
    (root / "Annotations" / "00.xml").write_text(voc_xml("first.jpg", [("cell", (0, 0, 5, 5))]))
    assert read_voc(root).parts["train"][0].path.name == "first.jpg"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><object>", "broken"),
        ("", "broken"),
        ("<annotation><object><name>cell</name></object></annotation>", "no bndbox/xmin"),
        (voc_xml("00.jpg", [("cell", ("left", 0, 5, 5))]), "left"),  # type: ignore[list-item]
        (voc_xml("00.jpg", [("", (0, 0, 5, 5))]), "no name"),
    ],
)
def test_broken_voc_file_is_named(tmp_path, content, reason):
    root = write_voc(tmp_path, images=3)
    (root / "Annotations" / "00.xml").write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        read_voc(root)
    assert str(root / "Annotations" / "00.xml") in message_of(error)


def test_voc_annotation_of_a_missing_image_is_named(tmp_path):
    root = write_voc(tmp_path, images=3)
    (root / "JPEGImages" / "01.jpg").unlink()
    with pytest.raises(UserError, match=r"01\.xml names image '01\.jpg', which is not in .*JPEGImages") as error:
        read_voc(root)
    message_of(error)


def test_voc_list_that_names_a_missing_annotation(tmp_path):
    root = write_voc(tmp_path, splits={"train": [0, 1, 77]})
    with pytest.raises(UserError, match=r"77\.xml does not exist"):
        read_voc(root)


def test_voc_class_that_only_the_test_part_has(tmp_path):
    root = write_voc(tmp_path, splits={"train": [0, 2, 4], "test": [1, 3]})
    with pytest.raises(UserError, match=r"01\.xml: unknown class 'dot'; the classes are cell"):
        read_voc(root)


def test_folder_of_another_layout(tmp_path):
    with pytest.raises(UserError, match=r"Annotations is not a folder; expected ROOT/Annotations"):
        read_voc(tmp_path)
    with pytest.raises(UserError, match="holds no JSON file; expected ROOT/annotations"):
        read_coco(tmp_path)
    with pytest.raises(UserError, match="needs a data directory"):
        DenseDataModule("voc_boxes").setup()


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, 10, 20), "has no area"),
        ((20, 10, 10, 20), "has no area"),
        ((5, 5, 61, 20), "leaves the image"),
        ((-1, 5, 6, 20), "leaves the image"),
        ((5, 5, "nan", 20), "has no area"),
    ],
)
@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_bad_box_is_refused_or_cut(tmp_path, box, reason, on_bad):
    root = write_voc(tmp_path, images=8)
    for path in (root / "Annotations").iterdir():
        path.write_text(voc_xml(f"{path.stem}.jpg", [("cell", box), ("cell", (30, 10, 40, 20))]))
    if on_bad == "error":
        with pytest.raises(UserError, match=reason) as error:
            setup("voc_boxes", root)
        assert "Annotations" in message_of(error)
        return
    example = setup("voc_boxes", root, on_bad_annotation="skip").train_set.examples[0]
    assert len(example.boxes) == (1 if reason == "has no area" else 2)
    assert (example.boxes >= 0).all()
    assert (example.boxes <= 32).all()


def test_annotation_of_another_image_size_is_refused(tmp_path):
    root = write_voc(tmp_path, images=6)
    picture(0, (80, 120)).save(root / "JPEGImages" / "00.jpg")
    image = read_voc(root).parts["train"][0]
    with pytest.raises(UserError, match=r"00\.xml: states 60 x 40 pixels, but .*00\.jpg has 120 x 80"):
        checked(image, 80, 120)


def test_coco_boxes_labels_and_crowds(tmp_path):
    found = read_coco(write_coco(tmp_path))
    assert found.class_names == ("cell", "dot")  # by category id
    images = found.parts["train"]
    assert images[1].boxes.tolist() == [[1, 5, 21, 15]]
    assert [int(image.labels[0]) for image in images] == [1, 2, 1, 2, 1, 2]
    assert [bool(image.crowd[0]) for image in images] == [False, False, False, False, True, False]


def test_coco_categories_can_be_chosen(tmp_path):
    found = read_coco(write_coco(tmp_path), ["dot"])
    assert [image.labels.tolist() for image in found.parts["train"]] == [[], [1], [], [1], [], [1]]
    assert found.parts["train"][0].boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), {"train", "test"}),
        (("train.json", "val.json", "test.json"), {"train", "val", "test"}),
        (("annotations/train.json",), {"train"}),
        (("labels.json",), {"train"}),
    ],
)
def test_coco_layouts(tmp_path, names, parts):
    for name in names:
        write_coco(tmp_path, json_name=name)
    assert set(read_coco(tmp_path).parts) == parts


def test_coco_images_beside_the_file_of_their_part(tmp_path):
    for part in ("train", "valid", "test"):
        write_coco(tmp_path / part, json_name="_annotations.coco.json")
        for path in (tmp_path / part / "images").iterdir():
            path.rename(tmp_path / part / path.name)
    found = read_coco(tmp_path)
    assert set(found.parts) == {"train", "val", "test"}
    assert found.parts["val"][0].path == tmp_path / "valid" / "00.png"


def broken(**changes):
    content = coco_content()
    for key, value in changes.items():
        content["annotations"][1][key] = value
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (broken(image_id=999), "annotation 1 is of image 999, which the file does not list"),
        (broken(category_id=999), "annotation 1 is of category 999"),
        (broken(bbox=[1, 2, 3]), "broken"),
        (broken(bbox=None), "broken"),
        ({**coco_content(), "images": [{"id": 1}]}, "image"),
        ({**coco_content(), "categories": [{"id": 1}]}, "category without id or name"),
        ({"images": [], "annotations": []}, "no list 'categories'"),
        ([], "no list 'images'"),
    ],
)
def test_broken_coco_file_is_named(tmp_path, content, reason):
    with pytest.raises(UserError, match=reason) as error:
        read_coco(write_coco(tmp_path, content))
    assert str(tmp_path / "annotations.json") in message_of(error)


def test_coco_file_that_is_no_json(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "annotations.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"annotations\.json is broken") as error:
        read_coco(tmp_path)
    message_of(error)


def test_coco_file_of_a_missing_image(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "images" / "03.png").unlink()
    with pytest.raises(UserError, match=r"annotations\.json names image '03\.png'"):
        read_coco(tmp_path)


def test_both_formats_serve_the_same_batches(tmp_path):
    voc_root = write_voc(tmp_path / "voc", images=8)
    images = read_voc(voc_root).parts["train"]
    content = {
        "images": [{"id": k, "file_name": f"{k:02d}.jpg"} for k in range(8)],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dot"}],
        "annotations": [
            {
                "id": 10 * k + j,
                "image_id": k,
                "category_id": int(label),
                "bbox": [*map(float, (*box[:2], *(box[2:] - box[:2])))],
            }
            for k, image in enumerate(images)
            for j, (box, label) in enumerate(zip(image.boxes, image.labels, strict=True))
        ],
    }
    (voc_root / "all.json").write_text(json.dumps(content))
    (voc_root / "JPEGImages").rename(voc_root / "images")
    coco = setup("coco_boxes", voc_root)
    (voc_root / "images").rename(voc_root / "JPEGImages")
    voc = setup("voc_boxes", voc_root)
    for one, other in zip(voc.train_set.examples, coco.train_set.examples, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.allclose(one.boxes, other.boxes)
        assert np.array_equal(one.labels, other.labels)


def test_the_order_of_the_classes_decides_the_labels_also_of_images_that_were_read_before(tmp_path):
    root = write_coco(tmp_path)
    counts = [setup("coco_boxes", root, class_names=names).label_counts("train") for names in (ORDER, ORDER[::-1])]
    assert counts[0].tolist() == counts[1].tolist()[::-1]
    assert counts[0][0] != counts[0][1]
    assert len(setup("coco_boxes", root, class_names=["dot"]).label_counts("train")) == 1


def test_a_class_that_coco_does_not_list_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        read_coco(write_coco(tmp_path), ["cel", "dot"])
    assert "unknown class of" in message_of(error)
    assert "'cel': did you mean cell?" in message_of(error)


def test_two_images_of_one_name_are_refused(tmp_path):
    root = write_voc(tmp_path)
    picture(0, SIZE).save(root / "JPEGImages" / "00.png")
    with pytest.raises(UserError, match=r"00\.jpg and 00\.png have the same name"):
        read_voc(root)
