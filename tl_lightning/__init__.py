"""Transfer learning in CNNs with PyTorch Lightning: studies that answer with evidence, and parts to reuse."""

from tl_lightning._lazy import lazy_exports

__version__ = "0.1.0"

_EXPORTS = {
    "UserError": "tl_lightning.errors",
    "create_backbone": "tl_lightning.backbones",
    "list_backbones": "tl_lightning.backbones",
    "Stages": "tl_lightning.backbones",
    "TransferModule": "tl_lightning.tasks",
    "DetectionModule": "tl_lightning.tasks",
    "SegmentationModule": "tl_lightning.tasks",
    "TransferDataModule": "tl_lightning.data",
    "DenseDataModule": "tl_lightning.data",
    "ProgressiveUnfreezing": "tl_lightning.callbacks",
    "DiscriminativeLR": "tl_lightning.callbacks",
    "FreezeAudit": "tl_lightning.callbacks",
    "BatchAugmentation": "tl_lightning.callbacks",
    "DenseAugmentation": "tl_lightning.callbacks",
    "EfficiencyMonitor": "tl_lightning.callbacks",
    "GradCAMLogger": "tl_lightning.callbacks",
    "MetricHistory": "tl_lightning.callbacks",
    "StepSeed": "tl_lightning.callbacks",
    "ActivationCache": "tl_lightning.features",
    "CachedDataModule": "tl_lightning.features",
    "ConvolutionGradients": "tl_lightning.convolution_gradients",
}

__all__ = [*_EXPORTS, "__version__"]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
