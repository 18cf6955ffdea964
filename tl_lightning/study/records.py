"""Records of trials: one JSON file a trial, written the moment it ends, so that a killed study goes on."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tl_lightning.errors import UserError, unknown_name
from tl_lightning.study.atomic import plain, write_json
from tl_lightning.study.claims import Claims
from tl_lightning.study.lock import folder_lock

FORMAT = 1
STATUSES = ("ok", "failed")
STANDARD_OUTPUTS = ("trials", "results.csv", "summary.csv", "criteria.csv", "report.md", "figures")
_TRIAL_ID = re.compile(r"[\w+=][\w.+=,-]{0,199}")
LOCK_SECONDS = 120.0  # to wait for another process that writes the report
_log = logging.getLogger(__name__)


class RecordStore:
    """The records of a study under its output folder.

    `study.json` holds the configuration and the names of the files that the study wrote; `trials/<id>/record.json`
    holds a trial's record. Whatever else lies in the folder is left alone.

    Args:
        out: The output folder; made when it is missing.

    Attributes:
        claims: Which process runs which trial.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self._locked = False
        self.claims = Claims(self.out, lambda: self.lock(LOCK_SECONDS))
        self._cache: dict[str, tuple[tuple[int, int, int], dict[str, Any] | None]] = {}

    @property
    def trials(self) -> Path:
        """The folder with a folder for each trial."""
        return self.out / "trials"

    def open(
        self, configuration: Mapping[str, Any], fresh: bool = False, defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Start a study in the folder, or go on with the one that is there.

        Args:
            configuration: What makes two studies the same; values that JSON can hold.
            fresh: Remove first what a study wrote here: its trials, tables, report and figures, nothing else.
            defaults: What settings were before they existed: a folder written by a version that lacked one goes on
                where the setting keeps its default.

        Raises:
            UserError: The folder is not writable, is in use, holds results of another configuration (the keys that
                differ are named), or holds files of the study's names that no study wrote.
        """
        with self.lock():
            configuration = plain(dict(configuration))
            state = self._state()
            others = self.claims.others()
            if fresh and others:
                raise UserError(f"{self.out} is in use by {others[0]}: end it before --fresh, or give another --out")
            if fresh and state is not None:
                self._remove(state["outputs"])
                state = None
            if state is None:
                self._refuse_foreign()
            elif _completed(state, defaults) != configuration:
                if others or self._has_records():
                    raise UserError(
                        f"{self.out} holds results of another configuration: "
                        f"{_differing(_completed(state, defaults), configuration)}; use --fresh or another --out"
                    )
                self._remove(state["outputs"])  # fits that were cut short would go on under the new settings
                state = None
            if state is None or state["configuration"] != configuration:  # one that lacked a setting is completed
                self._write_state(configuration, state["outputs"] if state else [])

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """Keep other processes off the folder; inside of it `open` and `lock` do not ask again.

        Args:
            wait: Seconds to wait for another process to leave it.

        Raises:
            UserError: Another process is at work in the folder; the line names it.
        """
        if self._locked:
            yield
            return
        self._make_folder()
        with folder_lock(self.out, wait):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def own(self, *names: str) -> None:
        """Note that the study is about to write these files or folders, for `fresh` to remove them later.

        Args:
            names: Names right under the output folder; the tables, the report and `figures` are known already.

        Raises:
            UserError: Such a file is there already and was not written by the study.
        """
        state = self._state()
        if state is None:
            raise RuntimeError("open the store before it owns files")
        new = [name for name in names if name not in (*state["outputs"], *STANDARD_OUTPUTS)]
        for name in new:
            if Path(name).name != name or name in ("..", ""):
                raise ValueError(f"{name!r} is not a name right under the output folder")
            if (self.out / name).exists():
                raise UserError(f"{self.out / name} was not written by this study: move it or give another --out")
        if new:
            self._write_state(state["configuration"], [*state["outputs"], *new])

    def write(self, record: Mapping[str, Any]) -> Path:
        """Write a trial's record at once, durably.

        Args:
            record: Holds `trial` (its id, valid as a file name) and `status` (``ok`` or ``failed``). Numbers that
                are not finite become null; numpy scalars, 0-d tensors, paths and tuples become plain JSON.

        Returns:
            Path of the file.

        Raises:
            UserError: The folder cannot be written or the disk is full; earlier records stay as they are.
        """
        if record["status"] not in STATUSES:
            raise unknown_name("status", record["status"], STATUSES)
        path = self._path(str(record["trial"]))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {path.parent}: {error.strerror or error}") from error
        write_json(path, dict(record))
        return path

    def records(self) -> list[dict[str, Any]]:
        """Return all records that can be read, sorted by trial id; a broken one is logged in one line."""
        found: dict[str, dict[str, Any]] = {}
        for name in self._trial_names():
            record = self._read(name)
            if record is not None:
                found[name] = record
        return [found[name] for name in sorted(found)]

    def record(self, trial: str) -> dict[str, Any] | None:
        """Return the trial's record, None where it has none that can be read."""
        return self._read(trial)

    def finished(self) -> set[str]:
        """Return the ids of the trials that have a record, failed ones too (see their `status`)."""
        return {str(record["trial"]) for record in self.records()}

    def _path(self, trial: str) -> Path:
        if not _TRIAL_ID.fullmatch(trial):
            raise UserError(f"trial id {trial!r} is no file name: use letters, digits and . _ - + = ,")
        return self.trials / trial / "record.json"

    def _trial_names(self) -> list[str]:
        try:
            return [entry.name for entry in self.trials.iterdir() if _TRIAL_ID.fullmatch(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _has_records(self) -> bool:
        return any((self.trials / name / "record.json").exists() for name in self._trial_names())

    def _read(self, trial: str) -> dict[str, Any] | None:
        """Return the record, None where there is none or a broken one; unchanged files are not read again."""
        path = self.trials / trial / "record.json"
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        key = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if trial not in self._cache or self._cache[trial][0] != key:
            self._cache[trial] = (key, _load_record(path, trial))
        record = self._cache[trial][1]
        return None if record is None else dict(record)

    def _state(self) -> dict[str, Any] | None:
        path = self.out / "study.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            return {"configuration": dict(state["configuration"]), "outputs": [str(x) for x in state["outputs"]]}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): remove it or give another --out") from error

    def _write_state(self, configuration: Mapping[str, Any], outputs: list[str]) -> None:
        state = {"format": FORMAT, "configuration": configuration, "outputs": outputs}
        write_json(self.out / "study.json", state)

    def _make_folder(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.out} is not writable: {error.strerror or error}") from error

    def _refuse_foreign(self) -> None:
        foreign = [name for name in STANDARD_OUTPUTS if (self.out / name).exists()]
        if foreign:
            raise UserError(
                f"{self.out} holds {', '.join(foreign)}, but no study.json says that a study wrote them: "
                "move them or give another --out"
            )

    def _remove(self, outputs: list[str]) -> None:
        """Remove what the study wrote; `study.json` last, so that a removal that was cut short goes on."""
        self._cache.clear()
        names = [*STANDARD_OUTPUTS, *(name for name in outputs if Path(name).name == name and name != "..")]
        try:
            for name in names:
                _remove_path(self.out / name)
            for leftover in self.out.glob(".*.tmp"):
                if re.fullmatch(r"\..+\.\d+-[0-9a-f]{8}\.tmp", leftover.name):
                    _remove_path(leftover)
            _remove_path(self.out / "study.json")
        except OSError as error:
            raise UserError(f"cannot remove {error.filename}: {error.strerror or error}") from error


def _remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _load_record(path: Path, trial: str) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["trial"] != trial or record["status"] not in STATUSES:
            raise ValueError(f"it is not a record of {trial}")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        _log.warning("%s is broken and counts as not finished: %s", path, reason)
        return None
    return record


def _completed(state: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the configuration of a folder with the settings that did not exist when it was written."""
    return {**plain(dict(defaults or {})), **state["configuration"]}


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], shown: int = 5) -> str:
    """Return the keys that differ with their values, old -> new."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [key for key in {**after, **before} if before.get(key, "(not set)") != after.get(key, "(not set)")]
    parts = [f"{key} {before.get(key, '(not set)')} -> {after.get(key, '(not set)')}" for key in keys[:shown]]
    if len(keys) > shown:
        parts.append(f"and {len(keys) - shown} more")
    return ", ".join(parts)


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
