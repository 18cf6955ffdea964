"""The table of published runs in a README is written from the runs."""

from __future__ import annotations

import pytest

from tl_lightning.errors import UserError
from tl_lightning.study.overview import BEGIN, END, overview, write_overview

RESULTS = "arm,seed,status,data,wall_seconds\na,0,ok,elpv,60\na,1,ok,elpv,120\nb,0,failed,elpv,30\n"
CRITERIA = "finding,verdict,n\n8a,holds,3\n6b,not decided,3\n8c,holds,3\n8d,not decided,0\n"


@pytest.fixture
def runs(tmp_path):
    for name in ("freezing", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.md").write_text(f"# {name}: How deep?\n\nText\n")
        (tmp_path / name / "results.csv").write_text(RESULTS)
    (tmp_path / "freezing" / "criteria.csv").write_text(CRITERIA)
    return tmp_path


def test_a_row_says_what_a_run_asked_and_found(runs):
    row = overview(runs, "logs/").iloc[0]
    assert row["run"] == "[freezing](logs/freezing/report.md)"
    assert row["question"] == "How deep?"
    assert row["trials (seeds)"] == "2 (2)"
    assert row["minutes"] == "3.5"
    assert row["published findings"] == "holds: 8a, 8c; not decided: 6b"


def test_the_table_replaces_the_one_between_the_markers(runs):
    readme = runs / "README.md"
    readme.write_text(f"before\n{BEGIN}\nstale table\n{END}\nafter\n")
    write_overview(runs, readme)
    once = readme.read_text()
    assert "stale" not in once
    assert once.startswith("before\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "| 3.5 |" in once
    write_overview(runs, readme)
    assert readme.read_text() == once


def test_a_readme_without_markers_is_left_alone(runs):
    readme = runs / "README.md"
    readme.write_text("mine")
    with pytest.raises(UserError, match="lacks the lines"):
        write_overview(runs, readme)
    assert readme.read_text() == "mine"
    with pytest.raises(UserError, match="holds no run"):
        overview(runs / "tasks")


def test_minutes_in_which_two_trials_ran_count_once(runs):
    times = ["2026-01-01T00:00:00.000+00:00", "2026-01-01T00:00:30.000+00:00", "2026-01-01T01:00:00.000+00:00"]
    lines = RESULTS.splitlines()
    lines = [f"{lines[0]},start_time", *(f"{line},{time}" for line, time in zip(lines[1:], times, strict=True))]
    (runs / "tasks" / "results.csv").write_text("\n".join(lines))
    assert overview(runs).set_index("question").loc["How deep?", "minutes"].tolist() == ["3.5", "3.0"]
