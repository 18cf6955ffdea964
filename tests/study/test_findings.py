"""Criteria of several runs become one table and one figure; a command repeats its run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pytest

from tl_lightning import study
from tl_lightning.errors import UserError
from tl_lightning.study.cli import parse
from tl_lightning.study.command_line import command_line
from tl_lightning.study.findings import collect, findings_figure, findings_table, write_findings
from tl_lightning.study.intervals import Interval
from tl_lightning.study.report import Report

ROOT = Path(__file__).parents[2]


@dataclass
class Own(study.Settings):
    """Settings.

    Args:
        sizes: Images a class.
        mirrored: Mirror them.
        domains: Classes of each.
    """

    sizes: list[int] = field(default_factory=lambda: [5, 20])
    mirrored: bool = False
    domains: list[str] = field(default_factory=list)


DESIGN = study.Study("s", "Does it?", "", lambda _: [], lambda *_: {}, lambda _: None, settings=Own)


def criterion(finding, mean, verdict, note="", published_effect=None, unit="points"):
    effect = Interval(mean, mean - 1, mean + 1, 3)
    return study.Criterion(finding, f"claim {finding}", "A 2000", "5", "above 0", effect, unit, verdict, note, published_effect)  # noqa: E501  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """Two runs' output folders, written by the report itself."""
    for run, criteria in {
        "one": [criterion("10a", 17.0, "holds", published_effect=15.0), criterion("2b", -0.5, "not decided")],
        "two": [criterion("9a", 0.7, "fails", note="it is not CIFAR", unit="rank correlation")],
    }.items():
        out = tmp_path / run
        out.mkdir()
        results = pd.DataFrame({"arm": ["a"], "seed": [0], "status": ["ok"]})
        report = Report(DESIGN, Own(sizes=[7]), out, [], results, ["a"])
        for item in criteria:
            report.criterion(item)
        report.write()
    return tmp_path


def test_all_criteria_are_collected_in_the_order_of_findings(runs):
    criteria = collect(runs)
    assert criteria["finding"].tolist() == ["2b", "9a", "10a"]
    table = findings_table(criteria)
    assert table["here"].tolist() == [
        "-0.5 [-1.5, +0.5] points",
        "+0.7 [-0.3, +1.7] rank correlation",
        "+17 [+16, +18] points",
    ]
    assert table["verdict"].tolist() == ["**not decided**", "**fails**", "**holds**"]


def test_what_one_run_did_not_measure_and_another_did_is_told_once(runs):
    blank = replace(criterion("2b", 0.0, "not decided"), effect=Interval(float("nan"), float("nan"), float("nan"), 0))
    never = replace(blank, finding="5b", claim="claim 5b")
    for run in ("three", "four"):
        (runs / run).mkdir()
        report = Report(DESIGN, Own(sizes=[7]), runs / run, [], pd.DataFrame({"arm": ["a"], "seed": [0], "status": ["ok"]}), ["a"])  # noqa: E501  # fmt: skip
        report.criterion(blank)
        report.criterion(never)
        report.write()
    criteria = collect(runs)
    assert list(criteria["finding"]) == ["2b", "5b", "9a", "10a"]
    assert list(criteria["run"])[:2] == ["one", "four"]


def test_failed_ones_stay_in_with_what_is_known_of_the_reason(runs):
    write_findings(collect(runs), runs, {("9a", "two"): "The maps are 3 cells wide."})
    text = (runs / "findings.md").read_text()
    assert "3 criteria, written before the runs: holds: 1; fails: 1; not decided: 1" in text
    assert "**9a** (two, fails): it is not CIFAR The maps are 3 cells wide." in text
    assert "python experiments/s.py --sizes '[7]'" in text
    assert (runs / "findings.png").stat().st_size > 10_000


def test_the_figure_has_a_panel_for_each_unit_and_marks_the_published_effect(runs):
    figure = findings_figure(collect(runs))
    assert [axes.get_xlabel() for axes in figure.axes] == ["points", "rank correlation"]
    crosses = [line.get_xdata().tolist() for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [15.0] in crosses


def test_without_runs_it_is_one_line(tmp_path):
    with pytest.raises(UserError, match="run a study first"):
        collect(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "criteria.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is no criteria file"):
        collect(tmp_path)


def test_the_script_prints_and_writes(runs):
    command = [sys.executable, str(ROOT / "experiments" / "findings.py"), "--logs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "not decided" in done.stdout
    assert (runs / "findings.md").exists()
    wrong = subprocess.run([*command[:-1], str(runs / "none")], capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1


def test_l2_sp_is_compared_between_a_run_on_cifar_and_one_on_elpv(runs):
    """Gains of 2 and 4 points on CIFAR-10, of 1, 1 and 4 points on ELPV, at the only size that both have."""
    accuracies = {
        "overfitting_own": ("cifar10", {10: [(0.50, 0.52), (0.50, 0.54)], 50: [(0.7, 0.9)]}),
        "overfitting": ("elpv", {10: [(0.60, 0.61), (0.61, 0.62), (0.59, 0.63)], 80: [(0.7, 0.7)]}),
    }
    for run, (data, sizes) in accuracies.items():
        trials = [
            {"study": "overfitting", "arm": f"{method}, {size} a class", "samples_per_class": size, "seed": seed}
            | {"start": "pretrained", "data": data, "status": "ok", "test_accuracy": accuracy}
            for size, pairs in sizes.items()
            for seed, pair in enumerate(pairs)
            for method, accuracy in zip(("none", "L2-SP"), pair, strict=True)
        ]
        (runs / run).mkdir()
        pd.DataFrame(trials).to_csv(runs / run / "results.csv", index=False)
    command = [sys.executable, str(ROOT / "experiments" / "findings.py"), "--logs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    row = next(line for line in (runs / "findings.md").read_text().splitlines() if "L2-SP gains more" in line)
    assert "at 10 a class" in row
    assert "+1 [" in row
    assert "| **not decided** | overfitting_own, overfitting |" in row


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"sizes": [1, 2], "learning_rates": [0.001, 0.01], "seeds": [3, 4]},
        {"data": "imagefolder", "data_dir": "my images", "precision": "bf16-mixed", "weight_decay": 0.0},
        {"samples_per_class": None, "seeds": 7, "image_size": 224, "mirrored": True},
        {"domains": ["a = bird,cat -> dog", "digits:fog:3", "0", "true", 'it\'s "so"', ""]},
    ],
)
def test_the_command_repeats_the_settings(changed):
    settings = replace(Own(), **changed)
    words = shlex.split(command_line(DESIGN, settings))
    assert words[:2] == ["python", "experiments/s.py"]
    assert parse(DESIGN, words[2:]) == settings


def test_where_a_run_goes_is_no_part_of_its_command():
    assert command_line(DESIGN, Own(out="/somewhere", gpus=0, fresh=True)) == "python experiments/s.py"
