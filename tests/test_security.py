"""Files from elsewhere run no code: checkpoints, YAML, archives."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path

import pytest
import torch

from tl_lightning.__main__ import main as main_of_one_model
from tl_lightning.backbones import create_backbone
from tl_lightning.errors import UserError
from tl_lightning.study.cli import main
from tl_lightning.study.design import Arm, Study
from tl_lightning.study.training import check_training

PACKAGE = sorted((Path(__file__).parents[1] / "tl_lightning").rglob("*.py"))
STUDY = Study("hostile", "", "", lambda s: [Arm("one")], lambda t, s: {}, lambda r: None, check=check_training)


class Payload:
    """Creates the file ``pwned`` when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "pwned"),)


@pytest.fixture(params=["zip", "legacy", "plain pickle"])
def malicious(request, tmp_path) -> Path:
    """A checkpoint with code in it, in each of the formats that ``torch.load`` reads."""
    path = tmp_path / "weights.pt"
    content = {"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": Payload(tmp_path)}
    if request.param == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


def test_the_payload_would_work(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path)))
    assert (tmp_path / "pwned").exists()


def refused(capsys, run, *arguments) -> str:
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_weights_with_code_are_refused_and_the_code_does_not_run(malicious):
    with pytest.raises(UserError, match="could run code"):
        create_backbone("shufflenet_v2_x0_5", str(malicious), 2)
    assert not (malicious.parent / "pwned").exists()


def test_a_study_refuses_weights_with_code_in_one_line(malicious, capsys):
    out = malicious.parent / "out"
    arguments = ["--weights", str(malicious), "--backbone", "shufflenet_v2_x0_5", "--data", "digits"]
    arguments += ["--image-size", "32", "--jobs", "1", "--gpus", "0", "--out", str(out)]
    assert "could run code" in refused(capsys, main, STUDY, arguments)
    assert not (malicious.parent / "pwned").exists()
    assert not out.exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_with_code_is_refused_in_one_line(command, malicious, capsys):
    assert "could run code" in refused(capsys, main_of_one_model, [command, "--ckpt_path", str(malicious)])
    assert not (malicious.parent / "pwned").exists()


UNSAFE = {
    "pickle": {"load", "loads", "Unpickler"},
    "yaml": {"load", "unsafe_load", "full_load", "load_all"},
    "shutil": {"unpack_archive"},
    "marshal": {"load", "loads"},
    "os": {"system", "popen"},
    "joblib": {"load"},
}


def unsafe_calls(path: Path) -> list[str]:
    """Return the calls of a module that could run code, or write outside of a folder, for a file from elsewhere."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        name = ast.unparse(node.func)
        owner, _, function = name.rpartition(".")
        bad = function in UNSAFE.get(owner, ()) or name in ("eval", "exec")
        bad |= function in ("extractall", "extract") and owner.startswith(("tar", "zip", "archive"))
        bad |= name == "torch.load" and options.get("weights_only") != "True"
        bad |= function == "load_from_checkpoint" and options.get("weights_only") != "True"
        bad |= name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False"
        bad |= options.get("shell") == "True"
        found += [f"{path.name}:{node.lineno} {name}"] if bad else []
    return found


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_no_module_loads_files_in_a_way_that_runs_code(path):
    assert unsafe_calls(path) == []


def test_the_search_finds_what_it_looks_for(tmp_path):
    module = tmp_path / "bad.py"
    lines = ["torch.load(f)", "pickle.loads(b)", "yaml.load(t)", "tar.extractall(d)", "np.load(f, allow_pickle=True)"]
    module.write_text("\n".join([*lines, "torch.load(f, weights_only=True)", "yaml.safe_load(t)", "np.load(f)"]))
    assert len(unsafe_calls(module)) == len(lines)
