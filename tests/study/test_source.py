"""Networks of one's own to transfer from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tl_lightning import create_backbone, study
from tl_lightning.errors import UserError
from tl_lightning.study.source import main

BACKBONE = "shufflenet_v2_x0_5"
SETTINGS = study.Settings(
    gpus=0,
    backbone=BACKBONE,
    weights="none",
    data="digits",
    image_size=32,
    epochs=2,
    batch_size=16,
    max_val_samples=20,
    learning_rates=[0.001, 0.01],
)
CLASSES = ["3", "1", "4"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A network pretrained on three digits, six images each, and its folder."""
    folder = tmp_path_factory.mktemp("sources")
    return study.pretrained_on(SETTINGS, CLASSES, 0, folder=folder, samples_per_class=6), folder


def test_a_backbone_begins_with_it_but_for_the_head(kept):
    model = create_backbone(BACKBONE, str(kept[0]), num_classes=7)
    state = torch.load(kept[0], weights_only=True)["state_dict"]
    own = model.state_dict()
    same = [name for name in own if name in state and own[name].shape == state[name].shape]
    assert set(own) - set(same) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(own[name], state[name]) for name in same)
    torch.manual_seed(0)
    fresh = create_backbone(BACKBONE, "none", num_classes=7).state_dict()
    assert not torch.equal(fresh["conv1.0.weight"], own["conv1.0.weight"])


def test_its_record_says_what_it_is(kept):
    record = study.source_record(kept[0])
    assert record["classes"] == CLASSES
    assert record["train_images"] == 18
    assert record["steps"] == 2 * record["epochs"] == 4
    assert record["learning_rate"] in (0.001, 0.01)
    assert 0 <= record["val_accuracy"] <= 1
    assert record["reached_plateau"] is None  # two epochs are too few to see one
    assert study.source_columns(kept[0])["source_steps"] == 4


def test_the_same_is_not_trained_twice_and_another_is(kept):
    path, folder = kept
    before = path.stat().st_mtime_ns
    assert study.pretrained_on(SETTINGS, CLASSES, 0, folder=folder, samples_per_class=6) == path
    assert path.stat().st_mtime_ns == before
    others = [
        study.pretrained_on(SETTINGS, CLASSES[::-1], 0, folder=folder, samples_per_class=6, learning_rate=0.01),
        study.pretrained_on(SETTINGS, CLASSES, 1, folder=folder, samples_per_class=6, learning_rate=0.01),
        study.pretrained_on(SETTINGS, CLASSES, 0, folder=folder, samples_per_class=6, learning_rate=0.01),
    ]
    assert len({path, *others}) == 4
    assert not list(folder.rglob("*.tmp"))


def test_the_same_arguments_give_the_same_network_elsewhere(kept, tmp_path):
    again = study.pretrained_on(SETTINGS, CLASSES, 0, folder=tmp_path, samples_per_class=6)
    assert again.parent.name == kept[0].parent.name
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in (kept[0], again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_steps_stand_for_epochs(tmp_path):
    path = study.pretrained_on(SETTINGS, CLASSES, 0, folder=tmp_path, samples_per_class=6, steps=5, learning_rate=0.01)
    assert study.source_record(path)["steps"] == 6  # whole epochs of two steps
    with pytest.raises(UserError, match="not both"):
        study.pretrained_on(SETTINGS, CLASSES, 0, folder=tmp_path, steps=5, epochs=2)


def test_a_fit_that_dies_leaves_no_network(tmp_path):
    broken = replace(SETTINGS, optimizer="adamm")
    with pytest.raises(UserError, match="adamw"):
        study.pretrained_on(broken, CLASSES, 0, folder=tmp_path, samples_per_class=6)
    assert not list(tmp_path.rglob("*.pt"))


def test_another_file_is_no_source(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no checkpoint at all")
    for name in ("other.pt", "none.pt", "text.pt"):
        with pytest.raises(UserError, match=f"{name} is not a network"):
            study.source_record(tmp_path / name)


COMMAND = [
    "--data",
    "digits",
    "--backbone",
    BACKBONE,
    "--epochs",
    "1",
    "--samples-per-class",
    "4",
    "--gpus",
    "0",
]


def test_the_command_writes_one_file_and_says_how_good_it_is(tmp_path, capsys):
    out = tmp_path / "own.pt"
    main([*COMMAND, "--classes", "0, 7", "--out", str(out)])
    assert "2 classes of digits (0, 7), validation accuracy" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]
    assert study.source_record(out)["classes"] == ["0", "7"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "0,x"], "unknown class 'x'"),
        (["--data", "digitss"], "did you mean digits"),
        (["--epochs", "0"], "--epochs"),
        (["--epocs", "1"], "did you mean --epochs"),
        (["--out", "/nowhere/at/all.pt"], "/nowhere/at/all.pt"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([*COMMAND, "--out", str(tmp_path / "own.pt"), *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "own.pt").exists()
