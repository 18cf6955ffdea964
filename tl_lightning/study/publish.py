"""Copy a study's outcome to a folder that can be committed: ``python -m tl_lightning.study.publish FROM TO``."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from tl_lightning.errors import UserError
from tl_lightning.study.plots.frames import evenly

TABLES = ("report.md", "results.csv", "summary.csv", "criteria.csv", "study.json")
MAX_EVENT_BYTES = 1_000_000
MAX_FIGURE_BYTES = 400_000  # larger ones, those with photographs, are published smaller
MAX_FIGURE_PIXELS = 1500  # of their longer side


def publish(source: Path, target: Path, runs: int = 3, without: Collection[str] = ()) -> list[Path]:
    """Copy report, tables, figures, records and event files; whatever ``target`` held before is replaced.

    Event files are renamed: the name that TensorBoard gives them holds the name of the machine. With more than 40 runs
    TensorBoard shows none until the reader picks some, so event files are copied of the figures and of a few trials of
    the first seed, each with the run that was selected.

    Args:
        source: Output folder of a study.
        target: Folder to fill.
        runs: Trials to copy the event files of, evenly over the arms; 0 leaves the figures alone.
        without: Names of figures to leave out, such as those that show images which may not be passed on; TensorBoard's
            copies of all figures are left out with them, and the report says so in their place.

    Returns:
        The files written.

    Raises:
        UserError: ``source`` holds no finished study, ``target`` something else than a published one, or one the other.
    """
    if not (source / "report.md").is_file():
        raise UserError(f"{source} holds no report.md: give the output folder of a study that has ended")
    origin, goal = source.resolve(), target.resolve()
    if goal.is_relative_to(origin) or origin.is_relative_to(goal):
        raise UserError(f"{target} would replace {source}: give another folder")
    if target.exists() and any(target.iterdir()) and not (target / "study.json").is_file():
        raise UserError(f"{target} holds files that are not a study's: give another folder")
    shutil.rmtree(target, ignore_errors=True)
    files = [source / name for name in TABLES if (source / name).is_file()]
    files += [file for file in _figures(source) if file.stem not in without]
    files += source.glob("trials/*/record.json")
    shown = [run for run in _runs(source, runs) if not (without and run == source / "figures")]
    events = [file for run in shown for file in run.iterdir() if file.stat().st_size <= MAX_EVENT_BYTES]
    written = [_copy(file, target / file.relative_to(source)) for file in files]
    for number, file in enumerate(sorted(file for file in events if "tfevents" in file.name)):
        name = f"events.out.tfevents.{number:04d}{'.hparams' if file.suffix == '.hparams' else ''}"
        written.append(_copy(file, target / file.relative_to(source).with_name(name)))
    if without:
        _say_what_is_left_out(target / "report.md", without)
    return written


def _figures(source: Path) -> list[Path]:
    """Return the figures that the report shows; others are of an earlier report."""
    shown = re.findall(r"\]\(([^()/]+\.png)\)", (source / "report.md").read_text(encoding="utf-8"))
    return [source / name for name in dict.fromkeys(shown) if (source / name).is_file()]


def _say_what_is_left_out(report: Path, without: Collection[str]) -> None:
    text = report.read_text(encoding="utf-8")
    for name in without:
        shown = re.compile(rf"!\[([^\]]*)\]\({re.escape(name)}\.png\)\n\n\*[^\n]*\*")
        text = shown.sub(f"(The figure *{name}* was left out of the published run.)", text)
    report.write_text(text, encoding="utf-8")


def _runs(source: Path, most: int) -> list[Path]:
    """Return the TensorBoard runs to show: the figures and the selected run of some trials, which has the hparams."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in source.glob("trials/*/record.json")]
    seeds = [record["seed"] for record in records]
    first = {record["trial"] for record in records if record["seed"] == min(seeds)}
    selected = [file.parent for file in source.glob("trials/*/*/*.hparams") if file.parts[-3] in first]
    return [*evenly(sorted(set(selected)), most), *source.glob("figures")]


def _copy(file: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png" and file.stat().st_size > MAX_FIGURE_BYTES:
        _shrink(file, target)
    else:
        shutil.copyfile(file, target)
    return target


def _shrink(file: Path, target: Path) -> None:
    """Write a figure with 256 colours and at most so many pixels: a repository keeps every version for good."""
    with Image.open(file) as opened:
        figure = opened.convert("RGB")
        figure.thumbnail((MAX_FIGURE_PIXELS, MAX_FIGURE_PIXELS), Image.Resampling.LANCZOS)
        figure.quantize(256).save(target, optimize=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("source", type=Path, metavar="FROM", help="output folder of a study")
    parser.add_argument("target", type=Path, metavar="TO", help="folder to fill, such as logs/reference/freezing")
    parser.add_argument("--runs", type=int, default=3, help="trials to copy the event files of")
    parser.add_argument("--without", nargs="+", default=[], metavar="FIGURE", help="figures to leave out, by name")
    arguments = parser.parse_args()
    try:
        written = publish(arguments.source, arguments.target, arguments.runs, arguments.without)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{len(written)} files, {sum(f.stat().st_size for f in written) / 1e6:.1f} MB in {arguments.target}")


if __name__ == "__main__":
    main()
