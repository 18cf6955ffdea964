"""What is published of a study: everything to read, nothing that names the machine."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from tl_lightning.errors import UserError
from tl_lightning.study.publish import publish
from tl_lightning.study.tensorboard import write_hparams


@pytest.fixture
def study(tmp_path):
    out = tmp_path / "out"
    for rate in ("lr=0.1", "lr=0.01"):
        with SummaryWriter(str(out / "trials" / "a--seed0" / rate)) as writer:
            writer.add_scalar("x", 1.0)
    write_hparams(out / "trials" / "a--seed0" / "lr=0.1", {"seed": 0}, {"accuracy": 0.5})
    for name in ("results.csv", "study.json", "figure.png", "stale.png"):
        (out / name).write_text(name)
    (out / "report.md").write_text("![What was found](figure.png)")
    (out / "trials" / "a--seed0" / "record.json").write_text('{"trial": "a--seed0", "seed": 0}')
    (out / "trials" / "a--seed0" / "last.ckpt").write_text("weights")
    return out


def test_events_keep_their_run_and_lose_the_machine(study, tmp_path):
    target = tmp_path / "reference"
    written = publish(study, target)
    assert all(socket.gethostname() not in file.name for file in written)
    assert (target / "trials" / "a--seed0" / "lr=0.1" / "events.out.tfevents.0000").stat().st_size > 0
    assert not (target / "trials" / "a--seed0" / "lr=0.01").exists()
    assert (target / "figure.png").read_text() == "figure.png"
    assert not list(target.rglob("*.ckpt"))
    assert not (target / "stale.png").exists()  # of an earlier report


def test_a_second_time_replaces_the_first(study, tmp_path):
    publish(study, tmp_path / "reference")
    (study / "report.md").write_text("")
    publish(study, tmp_path / "reference")
    assert not (tmp_path / "reference" / "figure.png").exists()


def test_a_folder_with_other_files_is_left_alone(study, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a study's"):
        publish(study, mine)
    assert (mine / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("target", [".", "trials", ".."])
def test_a_study_is_not_published_into_itself(study, target):
    with pytest.raises(UserError, match="would replace"):
        publish(study, study / target)
    assert (study / "results.csv").exists()


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no report\.md"):
        publish(tmp_path, tmp_path / "reference")


def test_few_runs_are_shown_all_of_the_first_seed_and_all_records_are_kept(study, tmp_path):
    for arm in "bcdef":
        for seed in (0, 1):
            trial = study / "trials" / f"{arm}--seed{seed}"
            with SummaryWriter(str(trial / "lr=0.1")) as writer:
                writer.add_scalar("x", 1.0)
            write_hparams(trial / "lr=0.1", {"seed": seed}, {"accuracy": 0.5})
            (trial / "record.json").write_text(f'{{"trial": "{trial.name}", "seed": {seed}}}')
    publish(study, tmp_path / "reference", runs=3)
    shown = {path.parts[-3] for path in (tmp_path / "reference").rglob("*.hparams")}
    assert len(shown) == 3
    assert all(name.endswith("seed0") for name in shown)
    assert len(list((tmp_path / "reference").rglob("record.json"))) == 11


def test_tensorboard_shows_the_reference_runs_at_once():
    """With more than 40 runs its pages of images and scalars begin empty."""
    reference = Path(__file__).parents[2] / "logs" / "reference"
    runs = {path.parent for path in reference.rglob("*tfevents*")}
    assert 20 <= len(runs) <= 40


def test_a_large_figure_is_published_smaller_and_a_small_one_as_it_is(study, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(study / "photographs.png")
    (study / "report.md").write_text("![Photographs](photographs.png)\n\n![Bars](figure.png)")
    publish(study, tmp_path / "reference")
    with Image.open(tmp_path / "reference" / "photographs.png") as published:
        assert published.size == (1500, 1000)
    assert (tmp_path / "reference" / "photographs.png").stat().st_size < (study / "photographs.png").stat().st_size / 3
    assert (tmp_path / "reference" / "figure.png").read_text() == "figure.png"


def test_a_figure_that_may_not_be_passed_on_is_left_out_everywhere(study, tmp_path):
    (study / "other.png").write_text("other")
    (study / "report.md").write_text("# s\n\n![Cells](figure.png)\n\n*Cells*\n\n![Bars](other.png)\n\n*Bars*\n")
    with SummaryWriter(str(study / "figures")) as writer:
        writer.add_scalar("x", 1.0)
    target = tmp_path / "reference"
    publish(study, target, without=["figure"])
    assert not (target / "figure.png").exists()
    assert not (target / "figures").exists()
    assert (target / "other.png").exists()
    text = (target / "report.md").read_text()
    assert "figure.png" not in text
    assert "(The figure *figure* was left out of the published run.)" in text
    assert "![Bars](other.png)" in text
    assert "figure.png" in (study / "report.md").read_text()
