"""Figures of a study: frames in, matplotlib figures out, no global state, readable at 800 pixels."""

from tl_lightning.study.plots.costs import cost_bars
from tl_lightning.study.plots.curves import learning_curves
from tl_lightning.study.plots.differences import paired_differences
from tl_lightning.study.plots.factor import accuracy_against_factor
from tl_lightning.study.plots.lines import gains_against_number, metric_against_number
from tl_lightning.study.plots.pareto import pareto, pareto_front
from tl_lightning.study.plots.predictions import boxes_over_image, dense_predictions, mask_over_image
from tl_lightning.study.plots.scores import correlation_forest, named_points
from tl_lightning.study.plots.target_times import target_times

__all__ = [
    "accuracy_against_factor",
    "boxes_over_image",
    "correlation_forest",
    "cost_bars",
    "dense_predictions",
    "gains_against_number",
    "learning_curves",
    "mask_over_image",
    "metric_against_number",
    "named_points",
    "paired_differences",
    "pareto",
    "pareto_front",
    "target_times",
]
