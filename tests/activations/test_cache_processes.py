"""Several processes share one cache directory."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import torch
from cached_rows import IDS, ROWS, collect, files, no_warning

from tl_lightning.features import (
    ActivationCache,
)


def compute_slowly(directory: Path, log: Path, pause: float) -> None:
    def compute(positions):
        with log.open("a") as file:
            file.write("x")
        for some in positions.split(10):
            time.sleep(pause)
            yield {"a": ROWS[some]}

    found = ActivationCache(directory, memory_bytes=0).collect({"a": "g"}, IDS, compute)["a"]
    assert torch.equal(found.all(), ROWS)


def start(directory: Path, log: Path, pause: float) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=compute_slowly, args=(directory, log, pause))
    process.start()
    return process


def test_two_processes_compute_once(tmp_path):
    both = [start(tmp_path / "cache", tmp_path / "log", 0.1) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "x"


def test_a_killed_writer_does_no_harm(tmp_path):
    process = start(tmp_path / "cache", tmp_path / "log", 0.5)
    while not files(tmp_path / "cache", ".tmp") and process.is_alive():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert files(tmp_path / "cache", ".tmp")
    assert files(tmp_path / "cache", ".json") == []
    with no_warning():
        values, computed = collect(ActivationCache(tmp_path / "cache"))
    assert torch.equal(values, ROWS)
    assert computed == list(range(40))
