"""Put finished timings into a README: ``python tests/benchmarks/readme.py README CHART FOLDER [FOLDER ...]``.

A folder is what ``speed.py`` wrote. The table shows the scenarios in which this package and its peers do the same work,
the chart all of them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from scenarios.figures import draw
from scenarios.measure import Result, Row
from scenarios.report import number

from tl_lightning.study.overview import put_between
from tl_lightning.study.report import markdown_table

BEGIN, END = "<!-- speed: written by tests/benchmarks/readme.py -->", "<!-- end of speed -->"
CONTENDERS = ("tl_lightning", "fastai", "timm", "Lightning", "finetuning-scheduler", "bare PyTorch")
BETTER = {"s": "less", "images/s": "more"}
TITLE = re.compile(r"^\*\*(S\d\w?)\*\* (.*)$", re.MULTILINE)
TARGET = re.compile(
    r"^\| (S\d\w?) +\| (.*?) +\| (at most|at least) (\S+) +\| (\S+) +\| (met|NOT met|not measured) +\|$",
    re.MULTILINE,
)
ONE_RUN = r", one run x .*"


def read_results(folder: Path) -> list[Result]:
    """Return the measurements that ``speed.py`` wrote to a folder."""
    titles = dict(TITLE.findall((folder / "speed.md").read_text(encoding="utf-8")))
    results = {name: Result(name, title) for name, title in titles.items()}
    keys = ["scenario", "contender", "unit", "size"]
    for (scenario, contender, unit, size), part in pd.read_csv(folder / "speed.csv").groupby(
        keys, sort=False, dropna=False
    ):
        x = None if pd.isna(size) else float(size)
        results[scenario].rows.append(Row(scenario, contender, unit, part["value"].tolist(), x))
    return list(results.values())


def table(results: Sequence[Result]) -> str:
    """Return a row for each scenario that peers took part in: the median of each contender."""
    rows = []
    for result in results:
        unit = result.rows[0].unit
        found = {column(row.contender): _cell(row) for row in result.rows if row.unit == unit}
        if "fastai" in found:
            title = f"**{result.scenario}** {result.title} ({unit}, {BETTER[unit]} is better)"
            rows.append({"": title, **{name: found.get(name, "") for name in CONTENDERS}})
    return markdown_table(pd.DataFrame(rows))


def column(contender: str) -> str:
    """Return the column of a contender, whose name may say how it was measured."""
    plain = re.sub(f"{ONE_RUN}|, channels last$", "", contender)
    return "Lightning" if plain.startswith("Lightning ") else plain


def _cell(row: Row) -> str:
    """Return a median; a star marks what was extrapolated from one run."""
    return number(row.median) + ("\\*" if re.search(ONE_RUN, row.contender) else "")


def targets(folder: Path) -> list[str]:
    """Return a sentence for each target of a run."""
    found = TARGET.findall((folder / "speed.md").read_text(encoding="utf-8"))
    return [
        f"- {name}, {what}: {value} ({sense} {bound} wanted), **{verdict}**"
        for name, what, sense, bound, value, verdict in found
    ]


def machines(folders: Sequence[Path]) -> str:
    """Return a line of machine, versions and date for each that differs, with its scenarios where there are several."""
    scenarios: dict[str, list[str]] = {}
    for folder in folders:
        text = (folder / "speed.md").read_text(encoding="utf-8")
        scenarios.setdefault(text.strip().splitlines()[-1], []).extend(name for name, _ in TITLE.findall(text))
    if len(scenarios) == 1:
        return next(iter(scenarios))
    return "\n\n".join(f"{', '.join(sorted(names))}: {line}" for line, names in scenarios.items())


def main() -> None:
    """Run the command line."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("readme", type=Path, metavar="README", help="file with the two markers")
    line.add_argument("chart", type=Path, metavar="CHART", help="PNG file to write")
    line.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="what speed.py wrote")
    options = line.parse_args()
    results = sorted((r for folder in options.folders for r in read_results(folder)), key=lambda r: r.scenario)
    sentences = sorted(sentence for folder in options.folders for sentence in targets(folder))
    where = machines(options.folders)
    draw(results, options.chart, where)
    put_between(
        options.readme, BEGIN, END, f"{table(results)}\n\n{where}\n\nTargets, set before:\n\n" + "\n".join(sentences)
    )


if __name__ == "__main__":
    main()
