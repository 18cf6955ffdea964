"""Backbones: torchvision models with a new head, and their stages by depth."""

from tl_lightning.backbones.factory import create_backbone, head_name
from tl_lightning.backbones.graph import Boundary
from tl_lightning.backbones.inputs import InputSpec, check_image_size, input_spec, list_backbones
from tl_lightning.backbones.stages import Stages

__all__ = [
    "Boundary",
    "InputSpec",
    "Stages",
    "check_image_size",
    "create_backbone",
    "head_name",
    "input_spec",
    "list_backbones",
]
