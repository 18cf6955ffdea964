"""A study: trials, records, paired comparison, figures, report."""

from tl_lightning._lazy import lazy_exports

_EXPORTS = {
    "Arm": "tl_lightning.study.design",
    "Trial": "tl_lightning.study.design",
    "Study": "tl_lightning.study.design",
    "Settings": "tl_lightning.study.settings",
    "Criterion": "tl_lightning.study.criterion",
    "Report": "tl_lightning.study.report",
    "main": "tl_lightning.study.cli",
    "train_and_test": "tl_lightning.study.training",
    "fit_classifier": "tl_lightning.study.training",
    "build_module": "tl_lightning.study.training",
    "data_module": "tl_lightning.study.training",
    "fit_grid": "tl_lightning.study.fitting",
    "evaluate_selected": "tl_lightning.study.fitting",
    "Fits": "tl_lightning.study.fitting",
    "reached_plateau": "tl_lightning.study.plateau",
    "check_training": "tl_lightning.study.training",
    "freezing_plan": "tl_lightning.study.training",
    "compare": "tl_lightning.study.comparison",
    "compare_all": "tl_lightning.study.comparison",
    "by_seed": "tl_lightning.study.comparison",
    "gain": "tl_lightning.study.comparison",
    "contrast": "tl_lightning.study.comparison",
    "gain_trend": "tl_lightning.study.comparison",
    "arm_table": "tl_lightning.study.tables",
    "comparison_table": "tl_lightning.study.tables",
    "HOW_TO_READ_DIFFERENCES": "tl_lightning.study.tables",
    "SCORES": "tl_lightning.study.transfer_scores",
    "Target": "tl_lightning.study.targets",
    "kept_features": "tl_lightning.study.transfer_scores",
    "measure_scores": "tl_lightning.study.transfer_scores",
    "parse_targets": "tl_lightning.study.targets",
    "plots": "tl_lightning.study.plots",
    "statistics": "tl_lightning.study.statistics",
    "measure_step_cost": "tl_lightning.study.step_cost",
    "pretrained_on": "tl_lightning.study.source",
    "sources": "tl_lightning.study.source",
    "source_columns": "tl_lightning.study.source",
    "source_record": "tl_lightning.study.source",
}

__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
