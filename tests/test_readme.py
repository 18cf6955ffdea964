"""README's example runs as written, and its commands name what exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_callback_example_runs_as_written(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    script = tmp_path / "example.py"
    script.write_text(code)
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "layer4 to fc" in result.stdout


def test_files_that_it_names_exist():
    for name in re.findall(r"(?:experiments|configs|logs/reference)/[\w./]+", README):
        assert (ROOT / name.rstrip(".")).exists(), name
