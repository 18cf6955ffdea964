"""The timings in the README are those of the committed measurements, put there by a script."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "benchmarks" / "readme.py"
FOLDERS = sorted(path.parent for path in (ROOT / "logs" / "reference" / "speed").glob("*/speed.md"))
BLOCK = re.compile(r"<!-- speed: .*?<!-- end of speed -->", re.DOTALL)


def put(readme, chart, folders):
    return subprocess.run(
        [sys.executable, SCRIPT, readme, chart, *folders], capture_output=True, text=True, check=False
    )


def block(readme):
    return BLOCK.search(readme.read_text(encoding="utf-8")).group()


def test_the_readme_says_what_was_measured(tmp_path):
    readme = tmp_path / "README.md"
    committed = (ROOT / "README.md").read_text(encoding="utf-8")
    readme.write_text(BLOCK.sub(block(ROOT / "README.md").replace("**met**", "**?**"), committed), encoding="utf-8")
    done = put(readme, tmp_path / "chart.png", FOLDERS)
    assert done.returncode == 0, done.stderr
    assert readme.read_text(encoding="utf-8") == committed
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.width > 1000


def test_machines_that_differ_are_told_apart(tmp_path):
    one, two = FOLDERS[:2]
    other = shutil.copytree(two, tmp_path / "other")
    text = (other / "speed.md").read_text(encoding="utf-8")
    (other / "speed.md").write_text(text.rstrip() + ", another day\n", encoding="utf-8")
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    assert put(readme, tmp_path / "chart.png", [one, other]).returncode == 0
    lines = [line for line in block(readme).splitlines() if "cores" in line]
    assert len(lines) == 2
    assert all(re.match(r"S\d.*: ", line) for line in lines)
    assert lines[1].endswith("another day")
