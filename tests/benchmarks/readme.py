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
CONTENDERS = ("tl_lightning", "fastai", "timm", "Lightning BackboneFinetuning", "finetuning-scheduler", "bare PyTorch")
TITLE = re.compile(r"^\*\*(S\d\w?)\*\* (.*)$", re.MULTILINE)
TARGET = re.compile(
    r"^\| (S\d\w?) +\| (.*?) +\| (at most|at least) (\S+) +\| (\S+) +\| (met|NOT met) +\|$", re.MULTILINE
)


def medians(folder: Path) -> pd.DataFrame:
    """Return a row for each scenario of a run that peers took part in: the median of each contender."""
    titles = dict(TITLE.findall((folder / "speed.md").read_text(encoding="utf-8")))
    values = pd.read_csv(folder / "speed.csv")
    values["contender"] = values["contender"].str.replace(r", one run x .*", "", regex=True)
    rows = []
    for (scenario, unit), part in values[values["unit"].isin(["s", "images/s"])].groupby(["scenario", "unit"]):
        found = part.groupby("contender")["value"].median()
        if "fastai" in found:
            shown = {name: number(found[name]) if name in found else "" for name in CONTENDERS}
            rows.append({"": f"**{scenario}** {titles[str(scenario)]} ({unit})", **shown})
    return pd.DataFrame(rows)


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
