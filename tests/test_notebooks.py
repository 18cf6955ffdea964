"""Every experiment opens as a notebook, and runs as one."""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path for path in (ROOT / "experiments").glob("*.py") if "study.main(STUDY)" in path.read_text())
CALL = "study.main(STUDY)"


def notebook_of(path: Path) -> nbformat.NotebookNode:
    return jupytext.read(path, fmt="py:percent")


def execute(notebook: nbformat.NotebookNode) -> str:
    """Run all cells in a kernel and return what the last one printed."""
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    return "".join(output.get("text", "") for output in notebook.cells[-1].outputs)


def test_there_is_an_experiment():
    assert "freezing" in {path.stem for path in EXPERIMENTS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_it_converts_to_a_valid_notebook_of_several_cells(path):
    notebook = notebook_of(path)
    nbformat.validate(notebook)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 4
    assert CALL in code[-1]
    assert not any("sys.argv" in source or "__file__" in source for source in code), "a notebook has neither"
    for source in code:
        compile(source, path.stem, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["freezing", "introduction"])
def test_it_runs_as_a_notebook_and_the_kernel_lives_on(name, tmp_path):
    notebook = notebook_of(ROOT / "experiments" / f"{name}.py")
    last = notebook.cells[-1]
    last.source = last.source.replace(CALL, f'study.main(STUDY, ["--smoke", "--out", {str(tmp_path)!r}])')
    notebook.cells.append(nbformat.v4.new_code_cell("print('alive', STUDY.name)"))
    assert execute(notebook) == f"alive {name}\n"
    assert (tmp_path / "report.md").exists()


TINY = """
import os
import sys

from tl_lightning import study
from tl_lightning.study import Arm

os.chdir({folder!r})
STUDY = study.Study("tiny", "Does it run?", "", lambda s: [Arm("one")], lambda t, s: {{}}, lambda r: None)
"""


def test_main_takes_no_command_line_from_the_kernel(tmp_path):
    """``sys.argv`` of a kernel is ``-f kernel.json``; success does not end the kernel, a wrong argument is an error."""
    sources = [
        TINY.format(folder=str(tmp_path)),
        "assert '-f' in sys.argv\nstudy.main(STUDY)",
        "study.main(STUDY, ['--fresh', '--epochs', '1'])",
        "print('alive')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    assert execute(notebook) == "alive\n"
    assert os.listdir(tmp_path) == ["logs"]
    wrong = [sources[0], "study.main(STUDY, ['--epocs', '3'])"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in wrong])
    with pytest.raises(CellExecutionError, match="error: unknown argument --epocs"):
        execute(notebook)
