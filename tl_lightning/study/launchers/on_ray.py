"""Trials as tasks of Ray, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl_lightning.errors import UserError
from tl_lightning.study.devices import resolve_devices
from tl_lightning.study.launchers.launch import WorkerDied
from tl_lightning.study.launchers.worker import Task, run_task
from tl_lightning.study.settings import Settings

WAIT_SECONDS = 0.5


class RayBackend:
    """Gives each trial the CPUs and GPUs that it needs; Ray finds the place.

    Ray starts on this machine, or joins the cluster that ``address`` or the variable RAY_ADDRESS names.

    Args:
        settings: ``launcher_options`` may hold ``address`` (of ``ray.init``), and ``num_cpus``, ``num_gpus`` and
            other options of a Ray task. By default a trial takes one CPU and one more for each of its ``workers``, and
            a GPU where the study runs on one.

    Raises:
        UserError: Ray is not installed, or there is no cluster at that address.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("--launcher ray needs Ray: pip install 'tl_lightning[ray]'") from error
        options = dict(settings.launcher_options)
        address = options.pop("address", None)
        self.ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
            except ConnectionError as error:
                raise UserError(f"no Ray cluster at {address}: {error}") from error
        resources = {"num_cpus": 1 + settings.workers, "num_gpus": _gpus(settings)}
        self.run = ray.remote(run_task).options(**{**resources, "max_retries": 0, **options})
        self.width = max(16, 4 * int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, task: Task) -> Any:
        """Hand the task over."""
        return self.run.remote(task)

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Wait for a moment and return those that have ended."""
        return list(self.ray.wait(list(handles), num_returns=1, timeout=WAIT_SECONDS)[0])

    def result(self, handle: Any) -> dict[str, Any]:
        """Return the record; what the trial's own code raises ends the study, as it does without Ray."""
        try:
            return dict(self.ray.get(handle))
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, UserError) else error from None
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            raise WorkerDied(f"{type(error).__name__}: {lines[0]}") from error

    def close(self, handles: Sequence[Any]) -> None:
        """End what still runs; a cluster that was there before stays."""
        for handle in handles:
            self.ray.cancel(handle, force=True)
        if self._own:
            self.ray.shutdown()


def _gpus(settings: Settings) -> int:
    if settings.gpus == 0:
        return 0
    # the driver's machine may have no GPU where the cluster has: a number that the user gave is taken as it is
    return settings.gpus or int(resolve_devices(None, settings.precision).accelerator == "cuda")
