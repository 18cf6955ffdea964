"""What do the studies say of published findings?

Question   Which published findings of transfer learning hold in the runs at hand, which fail, which are not decided?
Command    python experiments/findings.py                        the committed reference runs
           python experiments/findings.py --logs logs            your own runs
Output     A table on the terminal; findings.md and findings.png in the folder of the runs.
"""

# %%
from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tl_lightning.errors import UserError
from tl_lightning.study.cli import fail
from tl_lightning.study.findings import collect, findings_table, write_findings

# What was found out of the reasons, by finding and run; the numbers themselves come from the runs alone.
WHY: dict[tuple[str, str], str] = {
    ("4a", "tasks"): "1x is 36 steps: too few even for the pretrained network, whose advantage grows until 4x. The "
    "claim is about schedules at which both have learnt something; this run is too short to test it.",
    ("4a", "tasks_bench"): "CamVid: scratch was still improving at the end of 4x (see the report), so that the "
    "longer schedule is not long enough to say whether the gap closes.",
    ("5b", "domain_similarity_elpv"): "At 128 px and without augmentation. The mean of the three seeds lies below the "
    "published accuracy; their wide interval reaches it.",
    ("8c", "freezing"): "Noise on 8 x 8 digits hardly hurts: the head alone reaches 97 %, so that no arm can be 8 "
    "points above it.",
    ("10a", "transfer_vs_scratch"): "The fine-tuned network has 32 steps, scratch five times as many, which is enough "
    "for handwritten digits; with as many steps for both the gap is positive (see the note of the report).",
    ("10b", "transfer_vs_scratch_bench"): "40 steps are too few for both: five times as many bring the fine-tuned "
    "network as much as scratch, which is still improving at their end (see the learning curves).",
}


def main() -> None:
    """Collect, write and print."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("--logs", type=Path, default=Path("logs/reference"), help="folder with a folder for each run")
    folder = line.parse_args().logs
    try:
        criteria = collect(folder)
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
