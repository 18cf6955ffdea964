"""Every YAML under configs/ is what its study would read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from tl_lightning.study.cli import parse
from tl_lightning.study.design import Study
from tl_lightning.study.settings import Settings

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
EXPERIMENTS = {path.stem for path in (ROOT / "experiments").glob("*.py")}


def bare(name: str) -> Study:
    return Study(name, "", "", lambda s: [], lambda t, s: {}, lambda r: None)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_parses_and_says_nothing_twice(path):
    settings = parse(bare("none"), ["--config", str(path)])
    given = yaml.safe_load(path.read_text())
    for key, value in given.items():
        assert dataclasses.asdict(settings)[key] == value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_belongs_to_a_study(path):
    assert path.stem == "smoke" or path.stem.removesuffix("_cifar10") in EXPERIMENTS


def test_settings_have_a_documented_help():
    documentation = Settings.__doc__ or ""
    for field in dataclasses.fields(Settings):
        assert f"{field.name}: " in documentation
