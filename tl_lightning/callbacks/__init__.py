"""Callbacks that work in any LightningModule with one optimizer."""

from tl_lightning.callbacks.augmentation import BatchAugmentation
from tl_lightning.callbacks.dense_augmentation import DenseAugmentation
from tl_lightning.callbacks.discriminative_lr import DiscriminativeLR
from tl_lightning.callbacks.efficiency import EfficiencyMonitor
from tl_lightning.callbacks.freeze_audit import FreezeAudit
from tl_lightning.callbacks.freezing_schedule import ByEpoch, FreezingSchedule, Gradual, OnPlateau
from tl_lightning.callbacks.gradcam import GradCAMLogger
from tl_lightning.callbacks.history import MetricHistory
from tl_lightning.callbacks.plan import Plan, PlanRow
from tl_lightning.callbacks.step_seed import StepSeed
from tl_lightning.callbacks.unfreezing import ProgressiveUnfreezing

__all__ = [
    "BatchAugmentation",
    "ByEpoch",
    "DenseAugmentation",
    "DiscriminativeLR",
    "EfficiencyMonitor",
    "FreezeAudit",
    "FreezingSchedule",
    "GradCAMLogger",
    "Gradual",
    "MetricHistory",
    "OnPlateau",
    "Plan",
    "PlanRow",
    "ProgressiveUnfreezing",
    "StepSeed",
]
