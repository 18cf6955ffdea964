"""Arms that train in two phases: a linear probe, then fine-tuning from it (LP-FT, Kumar et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tl_lightning.study.design import Trial
from tl_lightning.study.fitting import Fits, evaluate_selected
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import activation_cache, data_module, fit_classifier

ADDED_UP = ("train_seconds", "extraction_seconds", "train_flops", "optimizer_steps", "images_seen")


def probe_then_fine_tune(
    trial: Trial,
    settings: Settings,
    *,
    probe: Mapping[str, Any],
    tests: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Fit the head on fixed features, then everything from the head that validation selected; test once.

    Each phase tries as many learning rates as the settings list. The costs of the record are those of both phases:
    of the selected probe, the activations it was fitted on, and the selected fine-tuning.

    Args:
        trial: Arm, seed and folder.
        settings: What all arms share.
        probe: Options of ``fit_classifier`` for the first phase.
        tests: Further test sets, as for ``train_and_test``.
        options: Options of ``fit_classifier`` for the second phase.

    Returns:
        The values of the trial's record; ``probe_val_accuracy`` and ``probe_learning_rate`` are of the first phase.
    """
    first = fit_classifier(trial, settings, freezing="head", phase="probe ", **probe)
    second = fit_classifier(trial, settings, start=first.best.module.state_dict(), phase="fine-tuning ", **options)
    shared = options.get("data_options") or {}
    further = {prefix: data_module(settings, trial.seed, **{**shared, **own}) for prefix, own in (tests or {}).items()}
    record = {
        "backbone": options.get("backbone") or settings.backbone,
        "weights": options.get("weights") or settings.weights,
        "bn": options.get("bn", "eval"),
        **evaluate_selected(trial, second, tests=further),
    }
    return record | _added(record, first)


def _added(record: Mapping[str, Any], first: Fits) -> dict[str, Any]:
    earlier = {**first.best.efficiency, "train_seconds": first.train_seconds}
    earlier["extraction_seconds"] = first.extraction_seconds
    sums = {name: record[name] + earlier[name] for name in ADDED_UP if name in record}
    return {
        **sums,
        "peak_memory_mb": max(record["peak_memory_mb"], earlier["peak_memory_mb"]),
        "probe_val_accuracy": first.best.validation[first.metric],
        "probe_learning_rate": first.best.lr,
        "probe_train_seconds": first.train_seconds,
    }


def forget_activations() -> None:
    """Drop the activations that are kept in memory, so that the next trial pays for its own.

    For studies that compare costs: the arms of a seed share images, and the first one would pay for all. What
    ``cache_dir`` keeps on disk stays.
    """
    activation_cache.cache_clear()
