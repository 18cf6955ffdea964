"""The tables of a run: measurements, targets, the CSV file."""

from __future__ import annotations

import csv
import os
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from scenarios.measure import Result, Row, ratio

PACKAGES = ("torch", "torchvision", "lightning", "finetuning-scheduler", "fastai", "timm", "tl_lightning")


def table(results: Sequence[Result], markdown: bool = False) -> str:
    """Return measurements with ratios, targets and notes."""
    parts = []
    for result in results:
        rows = [["contender", "median", "range", "unit", "ratio"], *(_cells(result, row) for row in result.rows)]
        title = f"**{result.scenario}** {result.title}" if markdown else f"{result.scenario}  {result.title}"
        parts += [title, "", *(_lines(rows, markdown) if result.rows else []), *(f"{n}" for n in result.notes), ""]
    targets = [["scenario", "target", "bound", "measured", "verdict"]]
    for target in (target for result in results for target in result.targets):
        value = "-" if target.value is None else f"{target.value:.3g}"
        targets.append([target.scenario, target.what, f"{target.sense} {target.bound:g}", value, target.verdict])
    return "\n".join([*parts, *_lines(targets, markdown), "", environment()])


def _cells(result: Result, row: Row) -> list[str]:
    same_unit = [r.median for r in result.rows if r.unit == row.unit and r.contender == (result.reference or "")]
    times = ratio(row.median, same_unit[0]) if same_unit else None
    spread = f"{min(row.values):.3g} to {max(row.values):.3g}" if len(row.values) > 1 else ""
    size = "" if row.x is None else f" at {row.x:g}"
    return [f"{row.contender}{size}", f"{row.median:.4g}", spread, row.unit, "" if times is None else f"{times:.2f}"]


def _lines(rows: list[list[str]], markdown: bool) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()
        if markdown and number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def number(value: float) -> str:
    """Return a value with three digits, or all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def environment() -> str:
    """Return machine, versions and date in one line."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads, {device}"
    return f"{machine}; Python {platform.python_version()}, {', '.join(found)}; {time.strftime('%Y-%m-%d')}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Write one line for every value."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scenario", "contender", "size", "repeat", "value", "unit"])
        for row in (row for result in results for row in result.rows):
            size = "" if row.x is None else f"{row.x:g}"
            writer.writerows([row.scenario, row.contender, size, k, v, row.unit] for k, v in enumerate(row.values))
