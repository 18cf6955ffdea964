"""Every YAML under configs/ is what its study would read."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from tl_lightning.study.cli import parse
from tl_lightning.study.design import Study
from tl_lightning.study.settings import Settings

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if not path.stem.startswith("fit_"))
SCRIPTS = sorted(path for path in (ROOT / "experiments").glob("*.py") if path.stem != "findings")


def study_of(path: Path) -> Study:
    """The study of STUDY.yaml or STUDY_VARIANT.yaml; the one that all share is read by the first."""
    named = [script for script in SCRIPTS if f"{path.stem}_".startswith(f"{script.stem}_")]
    assert named or path.stem == "smoke"
    script = named[0] if named else ROOT / "experiments" / "freezing.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module of their class
    spec.loader.exec_module(module)
    return module.STUDY


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_parses_and_says_nothing_twice(path):
    settings = parse(study_of(path), ["--config", str(path)])
    given = yaml.safe_load(path.read_text())
    for key, value in given.items():
        assert dataclasses.asdict(settings)[key] == value


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_study_documents_its_own_settings_and_has_a_laptop_default(path):
    study = study_of(path)
    assert (ROOT / "configs" / f"{path.stem}.yaml").exists()
    documentation = (study.settings.__doc__ or "") + (Settings.__doc__ or "")
    for field in dataclasses.fields(study.settings):
        assert f"{field.name}: " in documentation
