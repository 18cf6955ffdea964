"""The command that repeats a study: its script, and what differs from its own YAML."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import TYPE_CHECKING, Any

import yaml

from tl_lightning.study.settings import NOT_PART_OF_THE_STUDY, Settings

if TYPE_CHECKING:
    from tl_lightning.study.design import Study


def command_line(study: Study, settings: Settings) -> str:
    """Return the shell command that runs the study with these settings, seeds among them.

    Where it runs and where its results go is left out: ``--gpus``, ``--out`` and the like do not change the question.
    """
    from tl_lightning.study.cli import parse

    default = parse(study, [])
    words = ["python", f"experiments/{study.name}.py"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        skipped = field.name in NOT_PART_OF_THE_STUDY and field.name != "seeds"
        if not skipped and value != getattr(default, field.name):
            flag = "--" + field.name.replace("_", "-")
            words += [f"{flag}={_text(value)}"] if isinstance(value, bool) else [flag, _text(value)]
    return shlex.join(words)


def _text(value: Any) -> str:
    """Return a value as the command line reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(_item(item) for item in value) + "]"
    return str(value)


def _item(value: Any) -> str:
    """Return an item of a list, in quotes where it would be read as something else, such as two items."""
    text = _text(value)
    return json.dumps(value) if isinstance(value, str) and yaml.safe_load(f"[{text}]") != [value] else text
