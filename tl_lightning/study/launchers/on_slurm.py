"""Trials as jobs of SLURM, by submitit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tl_lightning.errors import UserError
from tl_lightning.study.launchers.launch import WorkerDied
from tl_lightning.study.launchers.worker import Task, run_task
from tl_lightning.study.settings import Settings

POLL_SECONDS = 2.0
FOLDER = "jobs"


class SlurmBackend:
    """Submits a job for each trial; its files are in the folder ``jobs`` of the output folder.

    Args:
        settings: ``launcher_options`` are those of submitit (``timeout_min``, ``slurm_partition``, ``gpus_per_node``,
            ``mem_gb``, ...); ``cluster: local`` runs the jobs as processes of this machine, and ``width`` is the
            number of jobs in the queue at one time (64 by default).
        out: The output folder, which all nodes share.

    Raises:
        UserError: submitit is not installed, there is no SLURM, or it refuses the options.
    """

    def __init__(self, settings: Settings, out: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("--launcher slurm needs submitit: pip install 'tl_lightning[slurm]'") from error
        options: dict[str, Any] = {"name": "tl_lightning", "cpus_per_task": 1 + settings.workers}
        if settings.gpus:
            options["gpus_per_node"] = settings.gpus
        options |= settings.launcher_options
        cluster = options.pop("cluster", "slurm")
        self.width = int(options.pop("width", 64))
        self.poll_seconds = 0.2 if cluster == "local" else POLL_SECONDS
        try:
            self.executor = submitit.AutoExecutor(folder=out.resolve() / FOLDER, cluster=cluster)
            self.executor.update_parameters(**options)
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise UserError(f"--launcher slurm: {error}") from error
        self.failures = (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError)

    def submit(self, task: Task) -> Any:
        """Hand the task over."""
        return self.executor.submit(run_task, task)

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Wait for a moment and return those that have ended."""
        ended = [job for job in handles if job.done()]
        if not ended:
            time.sleep(self.poll_seconds)
        return ended

    def result(self, handle: Any) -> dict[str, Any]:
        """Return the record; a job that the trial's own code ended ends the study."""
        try:
            return dict(handle.result())
        except self.failures as error:
            text = str(error)
            if "UserError" in text:
                raise UserError(text.strip().splitlines()[-1].partition("UserError: ")[2] or text) from error
            raise WorkerDied(f"job {handle.job_id}, {handle.state}, see {handle.paths.stderr}") from error

    def close(self, handles: Sequence[Any]) -> None:
        """Cancel what still runs."""
        for job in handles:
            with suppress(Exception):
                job.cancel(check=False)
