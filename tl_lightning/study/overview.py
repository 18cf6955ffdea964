"""A table of published runs in a README: ``python -m tl_lightning.study.overview FOLDER README``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from tl_lightning.errors import UserError
from tl_lightning.study.atomic import write_text
from tl_lightning.study.report import markdown_table

BEGIN, END = "<!-- runs: written by tl_lightning.study.overview -->", "<!-- end of runs -->"


def overview(folder: Path, link: str = "") -> pd.DataFrame:
    """Return a row for each run in ``folder``: its question, size, time and what its criteria say.

    Args:
        folder: Holds an output folder for each run.
        link: What to put before a run's name in the link to its report.

    Raises:
        UserError: No run is there.
    """
    runs = sorted(path.parent for path in folder.glob("*/report.md"))
    if not runs:
        raise UserError(f"{folder} holds no run: publish one there first")
    return pd.DataFrame([_row(run, link) for run in runs])


def write_overview(folder: Path, readme: Path) -> None:
    """Put the table between the two markers of a README.

    Raises:
        UserError: The markers are missing.
    """
    put_between(readme, BEGIN, END, markdown_table(overview(folder, f"{folder.as_posix()}/")))


def put_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two lines of a text file.

    Raises:
        UserError: The lines are missing.
    """
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{path} lacks the lines {begin} and {end} between which the table goes")
    write_text(path, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _row(run: Path, link: str) -> dict[str, str]:
    question = (run / "report.md").read_text(encoding="utf-8").splitlines()[0].partition(": ")[2]
    results = pd.read_csv(run / "results.csv")
    ended = results[results["status"] == "ok"]
    return {
        "run": f"[{run.name}]({link}{run.name}/report.md)",
        "question": question,
        "data": _some(list(dict.fromkeys(ended["data"].astype(str)))),
        "trials (seeds)": f"{len(ended)} ({ended['seed'].nunique()})",
        "minutes": f"{_seconds(results) / 60:.1f}",
        "published findings": _verdicts(run / "criteria.csv"),
    }


def _seconds(results: pd.DataFrame) -> float:
    """Return for how long trials ran, counting the time in which several did so once."""
    if "start_time" not in results:  # the run of an earlier version, one trial after the other
        return float(results["wall_seconds"].sum())
    begin = pd.to_datetime(results["start_time"], utc=True)
    spans = sorted(zip(begin, begin + pd.to_timedelta(results["wall_seconds"], unit="s"), strict=True))
    total, until = pd.Timedelta(0), spans[0][0]
    for first, last in spans:
        total += max(last, until) - max(first, until)
        until = max(last, until)
    return total.total_seconds()


def _some(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _verdicts(path: Path) -> str:
    if not path.is_file():
        return "none"
    criteria = pd.read_csv(path, dtype={"finding": str})
    criteria = criteria[criteria["n"] > 0]  # the others were not part of this run
    by_verdict = criteria.groupby("verdict", sort=False)["finding"].agg(lambda names: ", ".join(dict.fromkeys(names)))
    order = [verdict for verdict in ("holds", "fails", "not decided") if verdict in by_verdict]
    return "; ".join(f"{verdict}: {by_verdict[verdict]}" for verdict in order)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="published runs, such as logs/reference")
    parser.add_argument("readme", type=Path, metavar="README", help="file with the two markers")
    arguments = parser.parse_args()
    try:
        write_overview(arguments.folder, arguments.readme)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
