"""A study as its script makes it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tl_lightning.study.design import Study

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def load(name: str):
    """Return the module of ``experiments/NAME.py``, registered as dataclasses need it."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_study(name: str) -> Study:
    """Return the study of ``experiments/NAME.py``."""
    return load(name).STUDY
