"""Run a recorded trial again and compare: does the record say what the code does?"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_lightning.errors import UserError, unknown_name
from tl_lightning.study.atomic import plain
from tl_lightning.study.design import Study, Trial
from tl_lightning.study.jobs import share_of_threads
from tl_lightning.study.records import RecordStore
from tl_lightning.study.settings import Settings
from tl_lightning.study.trial_run import run_trial

# What a clock or a memory gauge says differs from run to run.
MEASURED = re.compile(
    r"(^|[_/.])(seconds?|minutes|ms|memory|mb|gb|time|speedup|throughput|latency)([_/.]|$)|per_second"
)
# What a repetition may change without being another trial; where it does, that explains a difference.
CIRCUMSTANCES = ("device", "versions", "git_commit", "git_dirty", "settings")


def repeat_trial(study: Study, settings: Settings) -> int:
    """Run ``settings.repeat`` again in a temporary folder, with the settings of its record, and print what differs.

    Returns:
        0 where every recorded value came out again, 1 where one did not.

    Raises:
        UserError: There is no such record, or it holds no settings.
    """
    store = RecordStore(Path(settings.out or f"logs/{study.name}"))
    name = str(settings.repeat)
    if name not in store.finished():
        raise unknown_name(f"trial in {store.out}", name, sorted(store.finished()))
    record = store.record(name) or {}
    with tempfile.TemporaryDirectory(prefix="tl_lightning-") as folder:
        own = recorded_settings(study, record, settings, folder)
        trial = _find(study, own, name, Path(folder))
        if study.check is not None:
            study.check(own)
        with share_of_threads(study, own):
            again = plain(run_trial(study, own, trial))
    differing = differences(record, again)
    for key in CIRCUMSTANCES[:-1]:
        if record.get(key) != again.get(key):
            print(f"note: {key} was {record.get(key)} and is now {again.get(key)}")
    for key, (before, after) in differing.items():
        print(f"{key}: recorded {before}, now {after}")
    if differing:
        print(f"{name} does not agree with its record: {len(differing)} values differ")
        return 1
    print(f"{name} agrees with its record in every value that no clock or memory gauge measured")
    return 0


def recorded_settings(study: Study, record: Mapping[str, Any], settings: Settings, out: str) -> Settings:
    """Return the settings that the record was made with, on the GPUs and in the folder of now."""
    if "settings" not in record:
        raise UserError(f"the record of {record.get('trial')} holds no settings: an earlier version wrote it")
    known = {field.name for field in dataclasses.fields(study.settings)}
    values = {key: value for key, value in record["settings"].items() if key in known}
    gpus = settings.gpus if settings.gpus is not None else values.get("gpus")
    return study.settings(**{**values, "gpus": gpus, "out": out, "checkpoint_seconds": float("inf")})


def differences(record: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values that differ, by their path in the record, but for what is measured and the circumstances."""
    before = dict(_leaves({key: value for key, value in record.items() if key not in CIRCUMSTANCES}))
    after = dict(_leaves({key: value for key, value in again.items() if key not in CIRCUMSTANCES}))
    names = [name for name in {**before, **after} if name and not MEASURED.search(name)]
    missing = "(nothing)"
    return {
        name: (before.get(name, missing), after.get(name, missing))
        for name in names
        if before.get(name, missing) != after.get(name, missing)
    }


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None or not len(value):
        return [(prefix, value)]
    return [leaf for key, item in items for leaf in _leaves(item, f"{prefix}.{key}" if prefix else str(key))]


def _find(study: Study, settings: Settings, name: str, out: Path) -> Trial:
    trials = {trial.id: trial for trial in study.trials(settings, out)}
    if name not in trials:
        raise UserError(f"{study.name} has no trial {name} any more: its arms are {sorted(trials)}")
    return trials[name]
