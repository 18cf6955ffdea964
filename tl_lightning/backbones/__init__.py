"""Backbones: torchvision models with a new head, and their stages by depth."""

from tl_lightning.backbones.graph import Boundary
from tl_lightning.backbones.stages import Stages

__all__ = ["Boundary", "Stages"]
