"""Callbacks that work in any LightningModule with one optimizer."""

from tl_lightning.callbacks.augmentation import BatchAugmentation
from tl_lightning.callbacks.best_epoch import BestEpoch
from tl_lightning.callbacks.clean_training import CleanTrainingMetrics
from tl_lightning.callbacks.compiled_training import CompiledTraining
from tl_lightning.callbacks.dense_augmentation import DenseAugmentation
from tl_lightning.callbacks.discriminative_lr import DiscriminativeLR
from tl_lightning.callbacks.efficiency import EfficiencyMonitor
from tl_lightning.callbacks.folded_prefix import FoldedPrefix
from tl_lightning.callbacks.freeze_audit import FreezeAudit
from tl_lightning.callbacks.freezing_schedule import ByEpoch, FreezingSchedule, Gradual, OnPlateau
from tl_lightning.callbacks.gradcam import GradCAMLogger
from tl_lightning.callbacks.history import MetricHistory
from tl_lightning.callbacks.l2_sp import L2SP
from tl_lightning.callbacks.plan import Plan, PlanRow
from tl_lightning.callbacks.precise_batch_norm import PreciseBatchNorm
from tl_lightning.callbacks.progressive_resizing import ProgressiveResizing
from tl_lightning.callbacks.step_seed import StepSeed
from tl_lightning.callbacks.training_clock import TrainingClock
from tl_lightning.callbacks.unfreezing import ProgressiveUnfreezing
from tl_lightning.callbacks.validate_every import ValidateEvery

__all__ = [
    "L2SP",
    "BatchAugmentation",
    "BestEpoch",
    "ByEpoch",
    "CleanTrainingMetrics",
    "CompiledTraining",
    "DenseAugmentation",
    "DiscriminativeLR",
    "EfficiencyMonitor",
    "FoldedPrefix",
    "FreezeAudit",
    "FreezingSchedule",
    "GradCAMLogger",
    "Gradual",
    "MetricHistory",
    "OnPlateau",
    "Plan",
    "PlanRow",
    "PreciseBatchNorm",
    "ProgressiveResizing",
    "ProgressiveUnfreezing",
    "StepSeed",
    "TrainingClock",
    "ValidateEvery",
]
