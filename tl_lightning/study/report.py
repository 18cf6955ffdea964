"""The written report of a study: Markdown, PNG figures, the criteria as CSV."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tl_lightning.data import DATASETS
from tl_lightning.study.atomic import write_text
from tl_lightning.study.command_line import command_line
from tl_lightning.study.criterion import Criterion
from tl_lightning.study.design import Study
from tl_lightning.study.settings import Settings

NEAR_ONE_ANSWER = 0.01  # above the share of the most frequent class


@dataclass(frozen=True)
class ShownFigure:
    """A figure with its file name (without ending) and the sentence under it."""

    name: str
    figure: Figure
    caption: str


class Report:
    """Collects what a study has to say, in order, and writes it to the output folder.

    Attributes:
        study: The study.
        settings: Its settings.
        results: A trial that ended well a row (columns as in ``results.csv``).
        failed: The trials that failed.
        curves: Columns ``arm``, ``seed``, ``epoch``, ``seconds`` and the metrics of each epoch.
        records: The full records of all trials, for studies that keep more than a row each.
        arms: Names of the arms, in the order of the study.
    """

    def __init__(
        self,
        study: Study,
        settings: Settings,
        out: Path,
        records: list[dict[str, Any]],
        results: pd.DataFrame,
        arms: list[str],
    ) -> None:
        self.study, self.settings, self.out, self.records, self.arms = study, settings, out, records, arms
        ended = results["status"] == "ok"
        self.results, self.failed = results[ended].copy(), results[~ended].copy()
        self.curves = _curves(records)
        self.criteria: list[Criterion] = []
        self.figures: list[ShownFigure] = []
        self._conclusions: list[str] = []
        self._body: list[str] = []

    def conclude(self, sentence: str) -> None:
        """Add a sentence to the short answer on top of the report."""
        self._conclusions.append(sentence)

    def section(self, title: str, text: str = "") -> None:
        """Begin a section."""
        self._body.append(f"## {title}\n\n{text}".rstrip())

    def text(self, text: str) -> None:
        """Add a paragraph of Markdown."""
        self._body.append(text)

    def table(self, frame: pd.DataFrame) -> None:
        """Add a table; numbers are shown as they are, so round or format them before."""
        self._body.append(markdown_table(frame))

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Add a figure; it is written as ``NAME.png`` and shown in TensorBoard."""
        self.figures.append(ShownFigure(name, figure, caption))
        self._body.append(f"![{caption}]({name}.png)\n\n*{caption}*")

    def criterion(self, criterion: Criterion) -> None:
        """Add the outcome of a published finding's criterion."""
        self.criteria.append(criterion)

    def markdown(self) -> str:
        """Return the whole report."""
        parts = [f"# {self.study.name}: {self.study.question}", "## In short", *self._short_answer()]
        parts += ["## What is being asked", self.study.background.strip()]
        parts += self._body
        if self.criteria:
            parts += ["## Against the literature", self._criteria_table()]
            notes = dict.fromkeys((c.finding, c.note) for c in self.criteria if c.note)
            parts += [f"**{finding}**: {note}" for finding, note in notes]
        parts += ["## Setup", self._setup()]
        if len(self.failed):
            columns = ["arm", "seed", "error"]
            parts += ["## Failed trials", markdown_table(self.failed[columns])]
        return "\n\n".join(parts) + "\n"

    def write(self) -> None:
        """Write ``report.md``, the figures and, where there are criteria, ``criteria.csv`` (else none of before)."""
        for shown in self.figures:
            shown.figure.savefig(self.out / f"{shown.name}.png", dpi=150)
        (self.out / "criteria.csv").unlink(missing_ok=True)
        if self.criteria:
            command = command_line(self.study, self.settings)
            rows = pd.DataFrame([{"study": self.study.name, **c.row(), "command": command} for c in self.criteria])
            write_text(self.out / "criteria.csv", rows.to_csv(index=False))
        write_text(self.out / "report.md", self.markdown())

    def _short_answer(self) -> list[str]:
        lines = [f"- {sentence}" for sentence in self._conclusions]
        lines += [f"- Finding {c.finding} **{c.verdict}**: {c.claim} ({c.source})." for c in self.criteria]
        seeds = self.results["seed"].nunique() if len(self.results) else 0
        if seeds < 3:
            lines.append(f"- **Anecdotal**: {seeds} seed(s); a comparison needs at least 3.")
        lines += [f"- {warning}" for warning in self._warnings()]
        if len(self.failed):
            lines.append(f"- {len(self.failed)} trial(s) failed and are left out; see the end.")
        return ["\n".join(lines)]

    def _warnings(self) -> list[str]:
        """Say what a reader must know before believing the numbers."""
        return [
            *self._overlap(),
            *self._one_answer(),
            *self._no_better_than_one_answer(),
            *self._few_learning_rates(),
            *self._at_the_edge(),
            *self._without_plateau(),
        ]

    def _overlap(self) -> list[str]:
        card = DATASETS.get(self.settings.data)
        if card is None or card.overlapping_classes == 0 or self.settings.weights == "none":
            return []
        return [f"**Overlap** of {card.name} with ImageNet, if that is the source: {card.imagenet_overlap}."]

    def _one_answer(self) -> list[str]:
        """Say what an accuracy has to be compared with."""
        if "one_answer_accuracy" not in self.results:
            return []
        shares = self.results.dropna(subset=["one_answer_accuracy"]).groupby("data", sort=False)["one_answer_accuracy"]
        told = ", ".join(f"{100 * share:.0f} % ({data})" for data, share in shares.mean().items())
        return [f"One answer for all validation images, their most frequent class, would be right for {told}."]

    def _no_better_than_one_answer(self) -> list[str]:
        """Name the arms that learnt nothing which an evaluation shows."""
        if not {"one_answer_accuracy", "val_accuracy"} <= set(self.results.columns):
            return []
        means = self.results.groupby("arm", sort=False)[["val_accuracy", "one_answer_accuracy"]].mean().dropna()
        arms = means.index[means["val_accuracy"] <= means["one_answer_accuracy"] + NEAR_ONE_ANSWER]
        if not len(arms):
            return []
        return [f"**No better than one answer for all** in validation: {_named(arms)}. What such an arm loses or gains "
                "says little."]  # fmt: skip

    def _few_learning_rates(self) -> list[str]:
        """Say where a grid is too small to have an inside."""
        if "learning_rates_tried" not in self.results:
            return []
        tried = self.results.groupby("arm")["learning_rates_tried"].min().dropna()
        few = tried[tried <= 2]
        if few.empty:
            return []
        arms = "all arms" if len(few) == len(tried) else f"{len(few)} of {len(tried)} arms"
        if few.min() == 1:
            return [
                f"**One learning rate** for {arms}: they are not tuned, and another rate may change the comparison."
            ]
        return [f"**Two learning rates** for {arms}: the better one is always at an edge of the grid, and a wider grid "
                "may change the comparison."]  # fmt: skip

    def _at_the_edge(self) -> list[str]:
        if "learning_rate_at_edge" not in self.results or not self.results["learning_rate_at_edge"].any():
            return []
        arms = self.results.groupby("arm", sort=False)["learning_rate_at_edge"].sum()
        named = "; ".join(f"*{arm}* ({count} of its seeds)" for arm, count in arms.items() if count)
        return [
            f"**Edge of the grid**: the best learning rate lay at the edge for {named}: a wider grid may change it."
        ]

    def _without_plateau(self) -> list[str]:
        """Name the arms from random weights that were still improving: longer training would have helped them."""
        if not {"weights", "reached_plateau"} <= set(self.results.columns):
            return []
        scratch = self.results[(self.results["weights"] == "none") & (self.results["reached_plateau"] == False)]  # noqa: E712
        named = _named(dict.fromkeys(scratch["arm"]))
        return [f"**Undertrained**: from random weights and still improving at the end: {named}."] if named else []

    def _criteria_table(self) -> str:
        rows = [
            {
                "finding": c.finding,
                "claim": c.claim,
                "published": f"{c.published} ({c.source})",
                "criterion": c.rule,
                "here": c.effect.described(c.unit),
                "n": c.effect.n,
                "verdict": f"**{c.verdict}**",
            }
            for c in self.criteria
        ]
        return markdown_table(pd.DataFrame(rows))

    def _setup(self) -> str:
        settings = {**self.settings.configuration(), "seeds": self.settings.seed_list()}
        lines = [f"- command: `{command_line(self.study, self.settings)}`"]
        lines += [f"- {key}: {value}" for key, value in settings.items() if value is not None]
        for column in (
            "device",
            "precision",
            "versions",
            "git_commit",
            "git_dirty",
            "test_fingerprint",
            "skipped_images",
        ):
            if column in self.results and len(self.results):
                values = sorted({_plain(value) for value in self.results[column].dropna()})
                lines.append(f"- {column}: {', '.join(values)}")
        return "\n".join(lines)


def _named(arms: Iterable[Any]) -> str:
    """Return the names of arms, which may hold commas."""
    return "; ".join(f"*{arm}*" for arm in arms)


def _plain(value: Any) -> str:
    """Return a number that pandas has made a float beside missing ones as it was."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def markdown_table(frame: pd.DataFrame) -> str:
    """Return the frame as a Markdown table without its index."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(object).values.tolist()]
    return "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _curves(records: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the epochs of all trials that ended well, one row an epoch."""
    rows = [
        {"arm": record["arm"], "seed": record["seed"], **epoch}
        for record in records
        if record["status"] == "ok"
        for epoch in record.get("curve", [])
    ]
    return pd.DataFrame(rows)
