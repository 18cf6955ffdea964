"""How long a study with many recorded trials takes to go on and to report, and a folder of many images to open.

    python tests/benchmarks/scale.py                     # 2,500, 5,000 and 10,000 trials, in a temporary folder
    python tests/benchmarks/scale.py --images 200000     # beside that an image folder of tiny files

The records are synthetic and written by the real writer; start, tables, report and figures are those of
`experiments/freezing.py`. Each column is seconds.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tl_lightning.data import TransferDataModule
from tl_lightning.study import Settings
from tl_lightning.study.environment import environment
from tl_lightning.study.launchers.source import StudySource
from tl_lightning.study.records import RecordStore
from tl_lightning.study.report import Report
from tl_lightning.study.results import results_frame, summary_frame, write_results_csv, write_summary_csv
from tl_lightning.study.runner import run_study
from tl_lightning.study.tensorboard import write_figures
from tl_lightning.study.work import Work

FREEZING = Path(__file__).parents[2] / "experiments" / "freezing.py"
LIMIT_SECONDS = 10.0
STUDY = StudySource(str(FREEZING), "STUDY").load()
SETTINGS = STUDY.settings(
    parts=["depth"],
    data="digits",
    backbone="shufflenet_v2_x0_5",
    weights="none",
    image_size=32,
    samples_per_class=4,
    gpus=0,
)


def record(trial: Any, settings: Settings, rng: np.random.Generator) -> dict[str, Any]:
    """Return a synthetic record with all that a real one holds."""
    accuracy = 0.8 - 0.02 * trial.arm.factors["frozen_stages"] + rng.normal(0, 0.02)
    names = ("loss", "accuracy", "macro_f1", "auroc", "ece")
    curve = [
        {"epoch": epoch, "seconds": 2.0 * epoch, "train/loss": 1 / (epoch + 1), "train/accuracy": accuracy}
        | {f"val/{name}": float(rng.random()) for name in names}
        for epoch in range(5)
    ]
    return {
        "trial": trial.id,
        "study": trial.study,
        "arm": trial.arm.name,
        "factors": dict(trial.arm.factors),
        "seed": trial.seed,
        "data": settings.data,
        "image_size": settings.image_size,
        "device": "synthetic",
        "backbone": settings.backbone,
        "weights": settings.weights,
        "epochs": 5,
        "learning_rate": 1e-3,
        "learning_rates_tried": 2,
        "learning_rate_at_edge": False,
        "one_answer_accuracy": 0.1,
        "reached_plateau": True,
        **{f"{part}_{name}": float(rng.random()) for part in ("val", "test") for name in names},
        "val_accuracy": accuracy,
        "test_accuracy": accuracy + rng.normal(0, 0.01),
        "train_seconds": 20 - 2 * trial.arm.factors["frozen_stages"] + rng.random(),
        "images_per_second": 500.0,
        "peak_memory_mb": 900.0,
        "trainable_parameters": 342_000,
        "total_parameters": 352_000,
        "forward_flops": 1.6e6,
        "step_time_ratio": float(rng.normal(0.6, 0.02)),
        "step_flops_ratio": 0.6,
        "precision": "32-true",
        "candidates": [{"learning_rate": rate, "val/accuracy": accuracy} for rate in (1e-3, 5e-3)],
        "curve": curve,
        "status": "ok",
        "error": "",
        "start_time": "2026-01-01T00:00:00.000+00:00",
        "wall_seconds": 22.0,
        "settings": settings.recorded(),
        **environment(),
    }


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call and what it returned."""
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def measure(study: Any, trials: int, out: Path) -> dict[str, float]:
    """Write that many records and time what a call of the finished study does."""
    arms = len(study.arms(SETTINGS))
    settings = replace(SETTINGS, out=str(out), seeds=-(-trials // arms))
    every = study.trials(settings, out)[:trials]
    rng = np.random.default_rng(0)
    store = RecordStore(out)
    store.open({"study": study.name, **settings.configuration()})
    seconds = {"write": timed(lambda: [store.write(record(trial, settings, rng)) for trial in every])[0]}
    store = RecordStore(out)
    seconds["start"], left = timed(lambda: Work(every, store).left())
    assert not left
    records = store.records()
    seconds["results.csv"], results = timed(lambda: _tables(out, records))
    report = Report(study, settings, out, records, results, [arm.name for arm in study.arms(settings)])
    seconds["report"] = timed(lambda: study.report(report))[0]
    figures = {shown.name: shown.figure for shown in report.figures}
    store.own(*(f"{name}.png" for name in figures))
    seconds["figures"] = timed(lambda: (report.write(), write_figures(out, figures)))[0]
    if trials == arms * settings.seed_list()[-1] + arms:  # the whole command ends without training anything
        seconds["whole call"], code = timed(lambda: run_study(study, settings))
        assert code == 0
    return seconds


def _tables(out: Path, records: list[dict[str, Any]]) -> Any:
    results = results_frame(records)
    write_results_csv(out, results)
    write_summary_csv(out, summary_frame(results))
    return results


def images(number: int, folder: Path) -> dict[str, float]:
    """Make an image folder of tiny files and open it twice."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / "train" / f"class{label}").mkdir(parents=True)
    made = timed(
        lambda: [
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                folder / "train" / f"class{n % 10}" / f"{n}.png"
            )
            for n in range(number)
        ]
    )[0]

    def open_folder() -> None:
        module = TransferDataModule("imagefolder", str(folder), image_size=8)
        module.prepare_data()
        module.setup()

    first, second = timed(open_folder)[0], timed(open_folder)[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"make": made, "open first": first, "open again": second, "peak MiB": peak}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, row in rows.items():
        cells = [f"{row[name]:.2f}" if name in row else "" for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print the tables; the exit code is 1 where a limit of 10 s is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[2500, 5000, 10_000])
    parser.add_argument("--images", type=int, default=0)
    arguments = parser.parse_args()
    study, rows, slow = STUDY, {}, []
    for trials in arguments.trials:
        with tempfile.TemporaryDirectory() as folder:
            rows[f"{trials:,} trials"] = row = measure(study, trials, Path(folder) / "out")
            slow += [f"{name} with {trials}" for name in row if name not in ("write", "whole call") and row[name] > 10]
    print(table(rows))
    if arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            row = images(arguments.images, Path(folder))
        print("\n" + table({f"{arguments.images:,} images": row}))
        slow += ["opening the image folder again"] if row["open again"] > LIMIT_SECONDS else []
    print("\n" + (f"over {LIMIT_SECONDS:.0f} s: {', '.join(slow)}" if slow else f"all under {LIMIT_SECONDS:.0f} s"))
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
