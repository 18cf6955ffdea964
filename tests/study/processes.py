"""Studies in processes of their own, through their public command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
FREEZING = ROOT / "experiments" / "freezing.py"
TINY = [
    *("--data", "digits", "--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", "32"),
    *("--samples-per-class", "4", "--max-val-samples", "20", "--max-test-samples", "20", "--batch-size", "8"),
    *("--epochs", "2", "--seeds", "1", "--learning-rates", "0.01", "--jobs", "1", "--gpus", "0"),
]
DEPTHS = ("--parts", "[depth]")  # the first part of freezing.py alone
TRIALS = 8  # of a seed
# What is measured with a clock or a memory gauge, and what changes when somebody commits during the test.
MEASURED = re.compile(r"seconds|start_time|images_per_second|memory|step_time_ratio|git_")


def _as_at_a_terminal() -> None:
    """Heed Ctrl-C and a hang-up, which a shell lets its background commands ignore."""
    for name in ("SIGINT", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


class Running:
    """A study in a process; its stderr is read as it comes."""

    def __init__(self, *arguments: object, script: Path | str = FREEZING, **env: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments), *(DEPTHS if script == FREEZING else ())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            preexec_fn=_as_at_a_terminal,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.lines.extend(line.rstrip("\n") for line in self.process.stderr)

    @property
    def stderr(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = 120) -> bool:
        """Wait for a line; False where the process ended without it."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.stderr):
            if self.process.poll() is not None:
                self._reader.join(10)
                return bool(re.search(pattern, self.stderr))
            assert time.monotonic() < end, f"no {pattern!r} in: {self.stderr}"
            time.sleep(0.01)
        return True

    def wait(self, seconds: float = 240) -> int:
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def end(self, number: int) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.wait()


def finished(out: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return the records there are: inode, time of writing, content."""
    found = {}
    for path in out.glob("trials/*/record.json"):
        stat = path.stat()
        found[path.parent.name] = (stat.st_ino, stat.st_mtime_ns, path.read_bytes())
    return found


def results(out: Path) -> str:
    """Return results.csv, bit for bit, without the columns that no two runs share."""
    table = pd.read_csv(out / "results.csv", dtype=str, keep_default_na=False)
    return table[[name for name in table if not MEASURED.search(name)]].to_csv(index=False)
