"""The peak of the memory in use while a model trains."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch

MEBIBYTE = 2**20
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Measures from ``start`` to ``read``, in MiB.

    What is measured depends on the device:

    - CUDA: the most bytes that tensors held at one time (``torch.cuda.max_memory_allocated``); the allocator's
      reserve and the CUDA context are not part of it.
    - Otherwise on Linux: the largest resident set of this process. It holds the interpreter, the libraries and
      the images in memory besides the training; worker processes are not part of it. The kernel's own high-water
      mark is set back at the start, after memory that Python and the C library had kept was given back.
    - Where that mark cannot be set back (macOS, a locked-down container): the largest resident set since the
      process began; NaN where even that is unknown (Windows).

    Args:
        device: The device that trains.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._base = float("nan")

    def start(self) -> None:
        """Begin to measure; what earlier fits left in reference cycles is freed first (0.2 s)."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device) / MEBIBYTE
            return
        _return_free_memory()
        _reset_high_water_mark()
        self._base = _status("VmRSS")

    def read(self) -> tuple[float, float]:
        """Return the peak and by how much it lies above the memory in use at the start."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / MEBIBYTE
        else:
            peak = _status("VmHWM") if _STATUS.exists() else _peak_since_process_start()
        return peak, peak - self._base


def _return_free_memory() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)


def _reset_high_water_mark() -> None:
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): sets VmHWM back to the present resident set
    except OSError:
        return


def _status(entry: str) -> float:
    """Return an entry of /proc/self/status in MiB."""
    if not _STATUS.exists():
        return float("nan")
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _peak_since_process_start() -> float:
    try:
        import resource  # absent on Windows
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024
