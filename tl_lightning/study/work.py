"""The trials that are left for this process, shared with others that work in the same folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tl_lightning.study.design import Trial
from tl_lightning.study.records import RecordStore
from tl_lightning.study.signals import check_stopped

POLL_SECONDS = 0.5


class Work:
    """Hands out trials that have no record and that nobody else runs.

    Args:
        trials: All trials, in the order in which to run them.
        store: Their records and claims.
        retry_failed: Run those again that had failed before.
    """

    def __init__(self, trials: Sequence[Trial], store: RecordStore, retry_failed: bool = False) -> None:
        self.trials = trials
        self.store = store
        records = {record["trial"]: record for record in store.records()}
        self._to_repeat = {
            name: record for name, record in records.items() if retry_failed and record["status"] == "failed"
        }

    def record(self, trial: Trial) -> dict[str, Any] | None:
        """Return the trial's record if it need not run again."""
        record = self.store.record(trial.id)
        return None if record is not None and record == self._to_repeat.get(trial.id) else record

    def left(self) -> list[Trial]:
        """Return the trials that have to be run, here or elsewhere."""
        return [trial for trial in self.trials if self.record(trial) is None]

    def claimed(
        self, seen: Callable[[dict[str, Any]], None], waiting: Callable[[list[Trial]], None]
    ) -> Iterator[Trial]:
        """Yield trials to run, each under a claim of this process, until every trial has its record.

        Args:
            seen: Called with the record of each trial that another process finished.
            waiting: Called, when it changes, with what only other processes are running.
        """
        left, said = self.left(), None
        while left:
            elsewhere: list[Trial] = []
            for trial in left:
                check_stopped()
                elsewhere = self._unfinished(elsewhere, seen)
                if (record := self.record(trial)) is not None:
                    seen(record)
                elif not self.store.claims.take(trial.id):
                    elsewhere.append(trial)
                elif (record := self.record(trial)) is not None:  # finished between the look and the claim
                    self.store.claims.release(trial.id)
                    seen(record)
                else:
                    yield trial
                    self.store.claims.release(trial.id)
                    said = None
                    if self.record(trial) is None:  # another process took it over meanwhile
                        elsewhere.append(trial)
            left = self._unfinished(elsewhere, seen)
            if left and left != said:
                waiting(left)
                said = left
            if left:
                time.sleep(POLL_SECONDS)

    def _unfinished(self, elsewhere: list[Trial], seen: Callable[[dict[str, Any]], None]) -> list[Trial]:
        """Return the trials that another process is still at."""
        running = []
        for trial in elsewhere:
            record = self.record(trial)
            if record is None:
                running.append(trial)
            else:
                seen(record)
        return running
