"""Where the trials of a study run: in this process, on a Ray cluster, or as jobs of SLURM."""

from tl_lightning._lazy import lazy_exports

# When first used: a trial's own processes import `launchers.source`, and the launchers import what runs a trial.
_EXPORTS = {"LAUNCHERS": "tl_lightning.study.launchers.launch", "launched": "tl_lightning.study.launchers.launch"}

__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
