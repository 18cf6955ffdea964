"""Where the trials of a study run: in this process, on a Ray cluster, or as jobs of SLURM."""

from tl_lightning.study.launchers.launch import LAUNCHERS, launched

__all__ = ["LAUNCHERS", "launched"]
