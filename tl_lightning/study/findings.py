"""What the studies say of published findings: their criteria files, one table, one figure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_lightning.errors import UserError
from tl_lightning.study.atomic import write_text
from tl_lightning.study.intervals import Interval
from tl_lightning.study.plots.style import HIGHER, LOWER, UNDECIDED, dress, new_figure, wrap
from tl_lightning.study.report import markdown_table

VERDICTS = {"holds": (HIGHER, "o"), "fails": (LOWER, "s"), "not decided": (UNDECIDED, "D")}


def collect(folder: Path, between: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Return the criteria of all studies in ``folder``, a criterion a row, by finding.

    A run of a part of a study has rows of the other parts that say "not measured"; they are left out where another
    run measured.

    Args:
        folder: Holds an output folder for each run, with its ``criteria.csv``.
        between: Rows of criteria that take more than one run, as from ``Criterion.row``, with their ``study``,
            ``command`` and ``run``.

    Raises:
        UserError: There is none, or one cannot be read.
    """
    paths = sorted(folder.glob("*/criteria.csv"))
    if not paths:
        raise UserError(f"no study under {folder} has a criteria.csv: run a study first, or name another folder")
    frames = []
    for path in paths:
        try:
            frame = pd.read_csv(path, dtype={"finding": str}, keep_default_na=True)
            frames.append(frame.assign(run=path.parent.name)[_columns(frame)])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no criteria file: {' '.join(str(error).split())}") from error
    if between:
        frames.append(pd.DataFrame(between).astype({"published_effect": float}))  # None is none
    criteria = _without_repeated_blanks(pd.concat(frames, ignore_index=True))
    return criteria.sort_values(["finding", "run"], key=lambda column: column.map(_natural)).reset_index(drop=True)


def _without_repeated_blanks(criteria: pd.DataFrame) -> pd.DataFrame:
    """Drop what a run did not measure and another run of the study did; of what none measured, one row stays."""
    blank = criteria["effect"].isna() & (criteria["n"] == 0)
    claim = criteria[["study", "finding", "claim"]]
    measured = pd.MultiIndex.from_frame(claim).isin(pd.MultiIndex.from_frame(claim[~blank]))
    return criteria[~blank | ~(measured | claim.duplicated())]


def findings_table(criteria: pd.DataFrame) -> pd.DataFrame:
    """Return the table for a reader: published and own effect, n, verdict, run."""
    rows = [
        {
            "finding": c["finding"],
            "claim": c["claim"],
            "published": f"{c['published']} ({c['source']})",
            "criterion": c["rule"],
            "here": _effect(c),
            "n": int(c["n"]),
            "verdict": f"**{c['verdict']}**",
            "run": c["run"],
        }
        for c in _rows(criteria)
    ]
    return pd.DataFrame(rows)


def findings_figure(criteria: pd.DataFrame) -> Figure:
    """Draw each criterion's effect with its interval, beside the published one where that is a number.

    Effects of one unit share a panel; the colour and the shape are the verdict.
    """
    criteria = criteria[np.isfinite(criteria["effect"])]
    units = list(dict.fromkeys(criteria["unit"]))
    groups = [criteria[criteria["unit"] == unit] for unit in units]
    heights = [len(group) + 0.8 for group in groups]
    figure = new_figure(9.5, max(3.0, 0.5 * sum(heights) + 1.2))
    panels = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, unit, group in zip(panels, units, groups, strict=True):
        _panel(axes, unit, group)
    _legend(figure, panels[0])
    return figure


def write_findings(criteria: pd.DataFrame, out: Path, why: Mapping[tuple[str, str], str]) -> None:
    """Write ``findings.md`` and ``findings.png``.

    Args:
        criteria: As ``collect`` returns them.
        out: Folder to write to.
        why: What is known of the reasons, by finding and run; shown for criteria that do not hold.
    """
    counts = "; ".join(f"{verdict}: {int((criteria['verdict'] == verdict).sum())}" for verdict in VERDICTS)
    parts = [
        "# Published findings, and what the runs here say of them",
        f"{len(criteria)} criteria, written before the runs: {counts}. *Not decided* means that the interval holds the "
        "bound, or that there is none: these seeds cannot tell. One that fails stays in. The criterion of 5b on ELPV "
        "asks only that the interval reaches the published number. `python experiments/findings.py` writes this.",
        "![Effects here and as published](findings.png)",
        markdown_table(findings_table(criteria)),
        "## What limits them",
        *(_remark(c, why) for c in _rows(criteria) if _has_remark(c, why)),
        "## Commands",
        *(f"- {run}: `{rows['command'].iloc[0]}`" for run, rows in criteria.groupby("run")),
    ]
    findings_figure(criteria).savefig(out / "findings.png", dpi=150)
    write_text(out / "findings.md", "\n\n".join(parts).replace("`\n\n- ", "`\n- ") + "\n")


def _columns(frame: pd.DataFrame) -> list[str]:
    needed = ["study", "finding", "claim", "source", "published", "published_effect", "rule", "unit", "verdict"]
    return [*needed, "note", "effect", "low", "high", "n", "command", "run"]


def _natural(text: str) -> str:
    """Return a key that puts 9a before 10a."""
    return re.sub(r"\d+", lambda number: number.group().zfill(3), str(text))


def _rows(criteria: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in criteria.to_dict("records")]


def _effect(c: Mapping[str, Any]) -> str:
    return Interval(c["effect"], c["low"], c["high"], c["n"]).described(c["unit"])


def _has_remark(c: Mapping[str, Any], why: Mapping[tuple[str, str], str]) -> bool:
    return isinstance(c["note"], str) or (c["finding"], c["run"]) in why


def _remark(c: Mapping[str, Any], why: Mapping[tuple[str, str], str]) -> str:
    note = c["note"] if isinstance(c["note"], str) else ""
    reason = why.get((c["finding"], c["run"]), "")
    said = " ".join(part for part in (note, reason) if part)
    return f"**{c['finding']}** ({c['run']}, {c['verdict']}): {said}"


def _panel(axes: Axes, unit: str, group: pd.DataFrame) -> None:
    places = np.arange(len(group))[::-1]
    rows = _rows(group)
    for place, c in zip(places, rows, strict=True):
        colour, marker = VERDICTS[c["verdict"]]
        if np.isfinite(c["low"]) and np.isfinite(c["high"]):
            axes.plot([c["low"], c["high"]], [place, place], color=colour, linewidth=1.8, zorder=2)
        axes.plot(c["effect"], place, marker=marker, color=colour, markersize=7, linestyle="none", zorder=3)
        if np.isfinite(c["published_effect"]):
            axes.plot(
                c["published_effect"], place, marker="x", color="#000000", markersize=8, linestyle="none", zorder=4
            )
    if unit != "%":  # an accuracy is not compared with 0
        axes.axvline(0, color="#888888", linewidth=0.8, zorder=1)
    axes.set_yticks(places, [wrap(f"{c['finding']}  {c['claim']} ({c['run']})", 62) for c in rows], fontsize=7)
    axes.set_ylim(-0.7, len(group) - 0.3)
    axes.set_xlabel(unit, fontsize=9)
    dress(axes, "x")


def _legend(figure: Figure, axes: Axes) -> None:
    handles = [
        axes.plot([], [], marker=marker, color=colour, linestyle="-", label=verdict)[0]
        for verdict, (colour, marker) in VERDICTS.items()
    ]
    handles += axes.plot([], [], marker="x", color="#000000", linestyle="none", label="published")
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
