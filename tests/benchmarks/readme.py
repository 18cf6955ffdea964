"""Put the medians of finished timings into a README: ``python tests/benchmarks/readme.py README FOLDER [FOLDER ...]``.

A folder is what ``speed.py`` wrote. The table shows the scenarios in which this package and its peers do the same work.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pandas as pd
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


def medians(folder: Path) -> pd.DataFrame:
    """Return a row for each scenario of a run that peers took part in: the median of each contender."""
    titles = dict(TITLE.findall((folder / "speed.md").read_text(encoding="utf-8")))
    values = pd.read_csv(folder / "speed.csv")
    rows = []
    for (scenario, unit), part in values[values["unit"].isin(BETTER)].groupby(["scenario", "unit"]):
        found = {column(name): _cell(name, runs["value"].median()) for name, runs in part.groupby("contender")}
        if "fastai" in found:
            title = f"**{scenario}** {titles[str(scenario)]} ({unit}, {BETTER[str(unit)]} is better)"
            rows.append({"": title, **{name: found.get(name, "") for name in CONTENDERS}})
    return pd.DataFrame(rows)


def column(contender: str) -> str:
    """Return the column of a contender, whose name may say how it was measured."""
    plain = re.sub(f"{ONE_RUN}|, channels last$", "", contender)
    return "Lightning" if plain.startswith("Lightning ") else plain


def _cell(contender: str, value: float) -> str:
    """Return a median; a star marks what was extrapolated from one run."""
    return number(value) + ("\\*" if re.search(ONE_RUN, contender) else "")


def targets(folder: Path) -> list[str]:
    """Return a sentence for each target of a run."""
    found = TARGET.findall((folder / "speed.md").read_text(encoding="utf-8"))
    return [
        f"- {name}, {what}: {value} ({sense} {bound} wanted), **{verdict}**"
        for name, what, sense, bound, value, verdict in found
    ]


def main() -> None:
    """Run the command line."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("readme", type=Path, metavar="README", help="file with the two markers")
    line.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="what speed.py wrote")
    options = line.parse_args()
    table = markdown_table(pd.concat([medians(folder) for folder in options.folders]).sort_values(""))
    sentences = sorted(sentence for folder in options.folders for sentence in targets(folder))
    put_between(options.readme, BEGIN, END, table + "\n\nTargets, set before:\n\n" + "\n".join(sentences))


if __name__ == "__main__":
    main()
