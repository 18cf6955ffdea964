import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tl_lightning.errors import UserError
from tl_lightning.study.environment import environment
from tl_lightning.study.records import RecordStore

CONFIGURATION = {"study": "freezing", "epochs": 3, "learning_rates": [1e-3, 1e-2], "data_dir": None}


def record(trial="head-only--seed0", **values):
    return {"trial": trial, "status": "ok", "error": "", "test_accuracy": 0.8, **values}


@pytest.fixture
def store(tmp_path):
    store = RecordStore(tmp_path / "out")
    store.open(CONFIGURATION)
    return store


def test_what_is_written_is_read_back_by_a_later_process(store):
    store.write(record(seed=3, curve=[{"epoch": 0, "val/accuracy": 0.5}]))
    store.write(record("all--seed0", status="failed", error="it broke", test_accuracy=None))
    later = RecordStore(store.out)
    later.open(CONFIGURATION)
    assert later.finished() == {"head-only--seed0", "all--seed0"}
    assert [r["trial"] for r in later.records()] == ["all--seed0", "head-only--seed0"]
    assert later.records()[1]["curve"] == [{"epoch": 0, "val/accuracy": 0.5}]


def test_records_are_plain_json(store):
    path = store.write(
        record(
            lr=np.float32(0.5),
            parameters=torch.tensor(7),
            shape=(1, 2),
            folder=Path("logs"),
            loss=float("nan"),
            losses=np.array([1.0, np.inf]),
            depths={3: "layer1"},
            flag=np.bool_(True),
        )
    )

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["lr"] == 0.5
    assert content["parameters"] == 7
    assert content["shape"] == [1, 2]
    assert content["folder"] == "logs"
    assert content["loss"] is None
    assert content["losses"] == [1.0, None]
    assert content["depths"] == {"3": "layer1"}
    assert content["flag"] is True
    with pytest.raises(TypeError):
        store.write(record(model=object()))


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=10
)


@given(st.dictionaries(st.text(), values, max_size=5))
def test_any_json_survives(tmp_path_factory, content):
    store = RecordStore(tmp_path_factory.mktemp("out"))
    written = {**content, **record()}
    store.write(written)
    assert RecordStore(store.out).records() == [written]


BROKEN = [
    b"",
    b"{",
    b'{"trial": "x--seed0"',
    b"[1, 2]",
    b"null",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"trial": "x--seed0"}',
    b'{"trial": "y", "status": "ok"}',
    b'{"trial": "x--seed0", "status": "running"}',
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_record_is_one_line_and_not_finished(store, caplog, content):
    store.write(record())
    folder = store.trials / "x--seed0"
    folder.mkdir()
    (folder / "record.json").write_bytes(content)
    assert store.finished() == {"head-only--seed0"}
    assert store.finished() == {"head-only--seed0"}
    assert len(caplog.messages) == 1
    assert str(folder / "record.json") in caplog.text
    assert "\n" not in caplog.messages[0]
    store.write(record("x--seed0"))
    assert store.finished() == {"head-only--seed0", "x--seed0"}


def test_truncation_at_any_byte_never_gives_a_wrong_record(store):
    path = store.write(record(seed=12, error="ä"))
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        assert store.finished() == set()
    path.write_bytes(whole)
    assert store.finished() == {"head-only--seed0"}


def test_a_folder_without_a_record_is_not_finished(store):
    (store.trials / "head-only--seed0" / "lr=0.001").mkdir(parents=True)
    (store.trials / "notes.txt").write_text("mine")
    (store.trials / "folder" / "record.json").mkdir(parents=True)
    assert store.finished() == set()


@pytest.mark.parametrize("trial", ["../x", "a/b", "", ".hidden", "a b", "a\\b", "x" * 300, "..", "a\n"])
def test_a_trial_id_cannot_leave_its_folder(store, trial):
    with pytest.raises(UserError, match="trial id"):
        store.write(record(trial))


def test_unknown_status_is_refused(store):
    with pytest.raises(UserError, match="unknown status 'fail'"):
        store.write(record(status="fail"))


def test_killed_while_writing_keeps_the_old_record(store):
    store.write(record(test_accuracy=0.5))
    program = f"""
import os
from tl_lightning.study.records import RecordStore
os.replace = lambda *paths: os.kill(os.getpid(), 9)
RecordStore({str(store.out)!r}).write({record(test_accuracy=0.9)!r})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert RecordStore(store.out).records()[0]["test_accuracy"] == 0.5
    store.open(CONFIGURATION, fresh=True)
    assert sorted(p.name for p in store.out.iterdir()) == ["study.json"]


def test_a_full_disk_is_one_line_and_keeps_what_was_recorded(store):
    store.write(record())
    program = f"""
import resource
from tl_lightning.study.records import RecordStore
store = RecordStore({str(store.out)!r})
store.open({CONFIGURATION!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    store.write({record("big--seed0", curve=list(range(1000)))!r})
except ValueError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UserError cannot write")
    assert done.stdout.count("\n") == 1
    assert store.finished() == {"head-only--seed0"}
    assert list((store.trials / "big--seed0").iterdir()) == []


def test_another_configuration_is_refused_with_the_keys_that_differ(store):
    other = {**CONFIGURATION, "epochs": 9, "learning_rates": (1e-3,), "new": True}
    RecordStore(store.out).open(other)  # nothing was recorded yet
    store.open(CONFIGURATION)
    store.write(record())
    with pytest.raises(UserError) as caught:
        RecordStore(store.out).open(other)
    assert str(caught.value) == (
        f"{store.out} holds results of another configuration: epochs 3 -> 9, learning_rates [0.001, 0.01] -> [0.001], "
        "new (not set) -> True; use --fresh or another --out"
    )
    RecordStore(store.out).open({**CONFIGURATION, "learning_rates": (1e-3, 1e-2)})
    assert store.finished() == {"head-only--seed0"}


def test_fits_that_were_cut_short_do_not_go_on_under_other_settings(store):
    checkpoint = store.trials / "head-only--seed0" / "lr=0.001" / "resume-0123-epoch.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weights")
    store.open(CONFIGURATION)
    assert checkpoint.exists()
    RecordStore(store.out).open({**CONFIGURATION, "epochs": 9})
    assert not checkpoint.exists()
    RecordStore(store.out).open({**CONFIGURATION, "epochs": 9})


def test_at_most_five_keys_are_named(tmp_path):
    store = RecordStore(tmp_path)
    store.open({"a": dict.fromkeys("abcdefgh", 1)})
    store.write(record())
    with pytest.raises(UserError, match=r"a\.a 1 -> 2, .*a\.e 1 -> 2, and 3 more; use --fresh"):
        store.open({"a": dict.fromkeys("abcdefgh", 2)})


def test_fresh_removes_the_study_and_nothing_else(store):
    outside = store.out.parent / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("mine")
    store.own("depth.png", "pareto.png")
    store.own("depth.png")
    store.write(record())
    for name in ("results.csv", "summary.csv", "criteria.csv", "report.md", "depth.png"):
        (store.out / name).write_text("ours")
    (store.out / "figures").mkdir()
    (store.trials / "head-only--seed0" / "link").symlink_to(outside)
    (store.out / "photo.png").write_text("mine")
    (store.out / "notes").mkdir()
    (store.out / "notes" / "results.csv").write_text("mine")

    again = RecordStore(store.out)
    again.open({"study": "other"}, fresh=True)
    assert sorted(p.name for p in store.out.iterdir()) == ["notes", "photo.png", "study.json"]
    assert (store.out / "notes" / "results.csv").read_text() == "mine"
    assert (outside / "kept.txt").read_text() == "mine"
    assert again.finished() == set()


def test_fresh_never_follows_a_link_at_the_top(store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("mine")
    (store.out / "figures").symlink_to(elsewhere)
    store.open(CONFIGURATION, fresh=True)
    assert (elsewhere / "kept.txt").exists()
    assert not (store.out / "figures").is_symlink()


@pytest.mark.parametrize("fresh", [False, True])
def test_files_that_no_study_wrote_are_not_overwritten(tmp_path, fresh):
    (tmp_path / "results.csv").write_text("mine")
    with pytest.raises(UserError, match=r"results\.csv, but no study\.json"):
        RecordStore(tmp_path).open(CONFIGURATION, fresh=fresh)
    assert (tmp_path / "results.csv").read_text() == "mine"


def test_a_folder_with_unrelated_files_is_fine(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    store = RecordStore(tmp_path)
    store.open(CONFIGURATION, fresh=True)
    store.write(record())
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(UserError, match=r"photo\.png was not written by this study"):
        store.own("photo.png")
    with pytest.raises(ValueError, match="right under"):
        store.own("../photo.png")


def test_a_damaged_study_file_is_an_error_not_a_loss(store):
    store.write(record())
    (store.out / "study.json").write_text('{"configuration": 3')
    with pytest.raises(UserError, match=r"study\.json cannot be read"):
        RecordStore(store.out).open(CONFIGURATION, fresh=True)
    assert store.finished() == {"head-only--seed0"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not writable: Not a directory"):
        RecordStore(tmp_path / "file" / "out").open(CONFIGURATION)
    with pytest.raises(UserError, match="not writable"):
        RecordStore("/proc/tl_lightning").open(CONFIGURATION)
    with pytest.raises(UserError, match="not writable"):
        RecordStore("/proc").open(CONFIGURATION)


def test_environment_names_versions_and_commit():
    found = environment()
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    )
    assert found["versions"]["python"] == sys.version.split()[0]
    assert set(found["versions"]) == {"python", "torch", "torchvision", "lightning", "tl_lightning"}
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert found["git_commit"] == head.stdout.strip()
        assert isinstance(found["git_dirty"], bool)
    else:
        assert found["git_commit"] is None


def test_a_setting_that_is_new_keeps_old_folders_usable_with_its_default(tmp_path):
    store = RecordStore(tmp_path / "out")
    store.open({"study": "s", "epochs": 3})
    store.write({"trial": "a--seed0", "status": "ok"})
    later = {"study": "s", "epochs": 3, "on_bad_image": "error"}
    RecordStore(tmp_path / "out").open(later, defaults={"epochs": 1, "on_bad_image": "error"})
    with pytest.raises(UserError, match="on_bad_image error -> skip"):
        RecordStore(tmp_path / "out").open({**later, "on_bad_image": "skip"}, defaults={"on_bad_image": "error"})
    with pytest.raises(UserError, match="epochs 3 -> 1"):
        RecordStore(tmp_path / "out").open({**later, "epochs": 1}, defaults={"epochs": 1, "on_bad_image": "error"})
