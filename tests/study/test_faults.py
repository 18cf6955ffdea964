"""Full disk, read-only folder, vanished images, too little memory: one line, and what was recorded is kept."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from processes import TINY, Running, finished, results

from tl_lightning import study
from tl_lightning.study import Arm, Settings, Study
from tl_lightning.study.runner import run_study


def mount(folder, *options):
    done = subprocess.run(["mount", *options, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")


@pytest.fixture
def small(tmp_path):
    """A file system of its own, of 700 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=700k", "tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


def one_line(running, *words):
    errors = [line for line in running.lines if line.startswith("error: ")]
    assert len(errors) == 1, running.stderr
    assert running.lines[-1] == errors[0]
    assert "Traceback" not in running.stderr
    assert all(word in errors[0] for word in words), errors[0]


@pytest.mark.slow
def test_a_full_disk_ends_the_study_and_keeps_what_was_recorded(small, serial):
    (small / "other").write_bytes(b"x" * 600 * 1024)
    full = Running(*TINY, "--out", small / "out")
    assert full.wait() == 2, full.stderr
    one_line(full, "No space left on device")
    kept = finished(small / "out")
    assert 0 < len(kept) < 8
    subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
    again = Running(*TINY, "--out", small / "out")
    assert again.wait() == 0, again.stderr
    assert {name: finished(small / "out")[name] for name in kept} == kept
    assert results(small / "out") == results(serial)


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_ends_the_study(small):
    subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
    running = Running(*TINY, "--out", small / "out")
    assert running.wait_for(r"\[1/8\]")
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    try:
        assert running.wait() == 2, running.stderr
        one_line(running, "Read-only file system")
        before = finished(small / "out")
        refused = Running(*TINY, "--out", small / "out")
        assert refused.wait() == 2
        one_line(refused, "not writable")
        assert finished(small / "out") == before != {}
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small], check=True)


@pytest.mark.slow
def test_images_that_vanish_end_the_study_until_they_are_back(tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    for name in ("cat", "dog"):
        (images / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / name / f"{number}.png")
    arguments = [*TINY, "--data", "imagefolder", "--data-dir", images, "--seeds", "2", "--out", tmp_path / "out"]
    running = Running(*arguments)
    assert running.wait_for(r"\[1/16\]")
    images.rename(tmp_path / "elsewhere")
    code = running.wait()
    kept = finished(tmp_path / "out")
    assert code == 2, running.stderr
    one_line(running, str(images), "is gone", "the same command goes on")
    assert 0 < len(kept) < 16
    shutil.move(tmp_path / "elsewhere", images)
    again = Running(*arguments)
    assert again.wait() == 0, again.stderr
    assert len(finished(tmp_path / "out")) == 16


def hungry(trial, settings):
    """A trial that asks for real memory: 2 TiB an image, for the first arm."""
    if trial.arm.name == "large":
        torch.empty(settings.micro_batch_size() - trial.arm.factors["fits"], 2**41)
    return {"test_accuracy": 0.5, "val_accuracy": 0.5}


def of_arms(*arms, run=hungry):
    return Study("memory", "?", "", lambda settings: list(arms), run, lambda report: None)


def test_too_little_memory_in_a_trial_is_a_failed_row(tmp_path):
    settings = Settings(out=str(tmp_path), seeds=1, gpus=0)
    memory = of_arms(Arm("large", {"fits": 0}), Arm("small", {"fits": 0}))
    assert run_study(memory, settings) == 1
    rows = pd.read_csv(tmp_path / "results.csv").set_index("arm")
    assert list(rows["status"]) == ["failed", "ok"]
    assert "allocate" in rows.loc["large", "error"]


def test_auto_batch_halves_the_micro_batch_until_it_fits(tmp_path):
    settings = Settings(out=str(tmp_path), seeds=1, gpus=0, batch_size=24, auto_batch=True)
    memory = of_arms(Arm("large", {"fits": 6}), Arm("small", {"fits": 0}))
    assert run_study(memory, settings) == 0
    rows = pd.read_csv(tmp_path / "results.csv").set_index("arm")
    assert list(rows["micro_batch"]) == [6, 24]
    assert not (tmp_path / "trials" / "large--seed0" / "error.txt").exists()


def test_auto_batch_gives_up_at_one_image(tmp_path):
    settings = Settings(out=str(tmp_path), seeds=1, gpus=0, batch_size=6, auto_batch=True)
    assert run_study(of_arms(Arm("large", {"fits": 0})), settings) == 1
    assert list(pd.read_csv(tmp_path / "results.csv")["micro_batch"]) == [1]


@pytest.mark.slow
def test_micro_batches_train_as_the_whole_batch_does(tmp_path):
    """Without BatchNorm in training mode (all but the head is frozen) only rounding differs."""
    whole = Settings(
        data="digits",
        backbone="shufflenet_v2_x0_5",
        weights="none",
        image_size=32,
        samples_per_class=4,
        max_val_samples=20,
        max_test_samples=20,
        batch_size=8,
        epochs=3,
        learning_rates=0.01,
        seeds=1,
        gpus=0,
    )

    def run(trial, settings):
        return study.train_and_test(trial, settings, freezing="head")

    rows = {}
    for micro in (8, 4, 1):
        settings = replace(whole, out=str(tmp_path / str(micro)), micro_batch=micro)
        assert run_study(of_arms(Arm("head"), run=run), settings) == 0
        rows[micro] = pd.read_csv(tmp_path / str(micro) / "results.csv").iloc[0]
    assert rows[8]["optimizer_steps"] == rows[4]["optimizer_steps"] == rows[1]["optimizer_steps"] == 15
    for micro in (4, 1):
        assert rows[micro]["val_loss"] == pytest.approx(rows[8]["val_loss"], abs=1e-5)
        assert rows[micro]["train_loss"] == pytest.approx(rows[8]["train_loss"], abs=1e-5)
