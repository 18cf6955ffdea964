"""What do the studies say of published findings?

Question   Which published findings of transfer learning hold in the runs at hand, which fail, which are not decided?
Command    python experiments/findings.py                        the committed reference runs
           python experiments/findings.py --logs logs            your own runs
Output     A table on the terminal; findings.md and findings.png in the folder of the runs.
"""

# %%
from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from tl_lightning import study
from tl_lightning.errors import UserError
from tl_lightning.study.cli import fail
from tl_lightning.study.findings import collect, findings_table, write_findings

# What was found out of the reasons, by finding and run; the numbers themselves come from the runs alone.
WHY: dict[tuple[str, str], str] = {
    ("2a", "fine_tuning_bench"): "In the one seed of 250 a class whose probe was best at the larger learning rate, "
    "fine-tuning from its head begins with a mean loss of 5.6 in the first epoch (2.1 and 2.4 in the others, 1.7 to "
    "1.8 from a new head) and ends at 50 % (62 and 66 %): presumably a head with large weights, under the full "
    "learning rate from the first step on. The grid ends at 0.001, selected in 8 of 9 fits of all layers.",
    ("4a", "tasks"): "1x is 36 steps: too few even for the pretrained network, whose advantage grows until 4x. The "
    "claim is about schedules at which both have learnt something; this run is too short to test it.",
    ("4a", "tasks_bench"): "CamVid: scratch was still improving at the end of 4x (see the report), so that the "
    "longer schedule is not long enough to say whether the gap closes.",
    ("5b", "domain_similarity_elpv"): "At 128 px and without augmentation. The mean of the three seeds lies below the "
    "published accuracy; their wide interval reaches it.",
    ("8c", "freezing"): "Noise on 8 x 8 digits hardly hurts: the head alone reaches 97 %, so that no arm can be 8 "
    "points above it.",
    (
        "9a",
        "interpretability_bench",
    ): "With all weights random 71 to 85 % of the maps of a seed are empty: nowhere does "
    "anything speak for the class, and an empty map ranks no pixels. Why, and why not on ELPV, was not found out.",
    ("10a", "transfer_vs_scratch"): "The fine-tuned network has 32 steps, scratch five times as many, which is enough "
    "for handwritten digits; with as many steps for both the gap is positive (see the note of the report).",
    ("10b", "transfer_vs_scratch_bench"): "40 steps are too few for both: five times as many bring the fine-tuned "
    "network as much as scratch, which is still improving at their end (see the learning curves).",
}


# %% What takes two runs: L2-SP on similar images (CIFAR-10) against dissimilar ones (ELPV)
def l2_sp(folder: Path) -> list[dict[str, Any]]:
    """Return the criterion of 7b on L2-SP for each two folders ``overfitting*``, one on CIFAR-10 and one on ELPV."""
    runs = {path.parent.name: _gains(pd.read_csv(path)) for path in sorted(folder.glob("overfitting*/results.csv"))}
    similar, dissimilar = ([run for run in runs if runs[run][0] == data] for data in ("cifar10", "elpv"))
    rows = (_l2_sp(a, b, runs[a][1], runs[b][1]) for a, b in itertools.product(similar, dissimilar))
    return [row for row in rows if row]


def _gains(results: pd.DataFrame) -> tuple[str, dict[int, list[float]]]:
    """Return the data set of a run, and what L2-SP gains there at each seed by images a class."""
    ended = results[(results["status"] == "ok") & (results["start"] == "pretrained")]
    gains = {}
    for size in sorted(int(size) for size in ended["samples_per_class"].unique()):
        pair = (f"L2-SP, {size} a class", f"none, {size} a class")
        if study.seeds(ended, *pair):
            gains[size] = list(study.gain(ended, pair, "test_accuracy").values())
    return "".join(results["data"].unique()), gains


def _l2_sp(run: str, other: str, a: dict[int, list[float]], b: dict[int, list[float]]) -> dict[str, Any]:
    """Compare the gains at the fewest images a class that both runs have; nothing where they share none."""
    few = min(a.keys() & b.keys(), default=None)
    if few is None:
        return {}
    difference = study.statistics.unpaired_difference(a[few], b[few]).scaled(100)
    here, there = (study.statistics.mean_interval(gains[few]).scaled(100).format(1) for gains in (a, b))
    criterion = study.Criterion(
        finding="7b",
        claim="L2-SP gains more on similar data than on dissimilar data",  # as in overfitting.py
        source="Li et al. 2020; Kou et al. 2020",
        published="fails on dissimilar data",
        rule=f"gain of L2-SP on A (CIFAR-10) - on B (ELPV) at {few} a class at least 0",
        effect=difference,
        unit="points",
        verdict=study.statistics.decide(difference, 0.0, "above"),
        note=f"Two runs, unpaired: {here} points on A, {there} on B. They differ in their steps, too.",
    )
    return criterion.row() | {
        "study": "overfitting",
        "run": f"{run}, {other}",
        "command": "python experiments/findings.py",
    }


# %% All of them
def main() -> None:
    """Collect, write and print."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("--logs", type=Path, default=Path("logs/reference"), help="folder with a folder for each run")
    folder = line.parse_args().logs
    try:
        criteria = collect(folder, between=l2_sp(folder))
        write_findings(criteria, folder, WHY)
    except UserError as error:
        fail(str(error))
    shown = findings_table(criteria)[["finding", "run", "here", "n", "verdict", "criterion"]]
    table = Table(title="Published findings in these runs", title_justify="left")
    for column in shown:
        table.add_column(column, overflow="fold")
    for row in shown.itertuples(index=False):
        table.add_row(*(str(value).replace("**", "") for value in row))
    Console(highlight=False).print(table)
    print(f"written: {folder / 'findings.md'}, {folder / 'findings.png'}")


# %%
if __name__ == "__main__":
    main()
