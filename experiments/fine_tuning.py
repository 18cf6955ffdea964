"""Which layers should be fine-tuned, and in which order, for how much data?

Question   All layers, the top layers, the head alone (linear probe), or the head first and then all (LP-FT): which is
           best at which training-set size, on test images like the training images and on corrupted ones?
Command    python experiments/fine_tuning.py              EfficientNet-Lite0 on ELPV, laptop, 6 minutes
           python experiments/fine_tuning.py --config configs/fine_tuning_cifar10.yaml --gpus 1
Expected   Fine-tuning beats the linear probe once there is data (Kornblith et al. 2019). LP-FT is as good as
           fine-tuning in distribution (+1 point) and better out of it (+10 points; Kumar et al. 2022).
"""

# %%
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

import tl_lightning as tl
from tl_lightning import study
from tl_lightning.study import Arm, Trial
from tl_lightning.study.statistics import Interval, decide

BACKGROUND = """
**Fine-tuning** trains all layers of a pretrained network on the new task. A **linear probe** trains a new last layer
(the *head*) on features that stay as they are: a linear classifier, cheap, with few parameters to overfit. In between,
only the **top layers** train, since the lower ones hold general features such as edges and textures. The more data
there is, the more parameters can be trained without learning the training images by heart.

**LP-FT** (Kumar et al. 2022) does one after the other. A new head starts with random weights, and the gradients that
pass through it in the first steps change the pretrained features for no good reason (*feature distortion*), in the
directions that the training images show and not in others. Starting from the trained head of a linear probe avoids
that. The harm hardly shows on test images like the training images (**in distribution**), but on images that differ
(**out of distribution**): here the same test images under corruptions that no training image has.

**How to read the accuracy figures**: one line a method, training images a class from left to right; the point is the
mean over seeds, the bar its 95 % interval, the small dots are the single seeds. **The gain figures** show differences
paired by seed (same images, same head, same order of batches): above 0 the first method is better, and an interval
that holds 0 leaves it open.

All methods take equally many optimizer steps at every size and try equally many learning rates; a probe's are larger
(`head_rate_factor`), and its passes more (`probe_passes`), which its cached features make cheap. The time of LP-FT
holds both phases and the features.

Sources: Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform out-of-distribution";
Kornblith et al. 2019, "Do better ImageNet models transfer better?"; Hendrycks & Dietterich 2019, "Benchmarking neural
network robustness to common corruptions and perturbations".
"""

ALL, TOP, PROBE, LP_FT = METHODS = ("all layers", "top layers", "linear probe", "LP-FT")
IN, OUT = "test_accuracy", "test_ood_accuracy"
MARGIN = 0.5  # points: what LP-FT may lose and still keep what fine-tuning has
NEAR_0 = 1.0  # points: what still counts as near 0
GROWS = "the more, the more data"


@dataclass
class FineTuningSettings(study.Settings):
    """Settings of the study.

    Args:
        sizes: Training images a class, at least two sizes; they take the place of samples_per_class. ``epochs`` is
            that of the largest one, the smaller ones take as many optimizer steps.
        top_stages: Stages that train in the arm of the top layers, the head among them.
        corruptions: Corruptions of the test images, each a test set of its own; their mean is the accuracy out of
            distribution.
        severity: Severity of the corruptions, 1 to 5.
        head_rate_factor: Learning rates of a linear probe are ``learning_rates`` times this.
        probe_passes: Epochs of a linear probe are those of fine-tuning times this.
    """

    sizes: list[int] = field(default_factory=lambda: [10, 50, 250])
    top_stages: int = 3
    corruptions: list[str] = field(default_factory=lambda: ["gaussian_noise", "defocus_blur", "contrast"])
    severity: int = 3
    head_rate_factor: float = 10.0
    probe_passes: int = 2


# %% The grid
def name(method: str, size: int) -> str:
    """Return the name of the arm of a method at a training-set size."""
    return f"{method}, {size} a class"


def arms(settings: FineTuningSettings) -> list[Arm]:
    """Return an arm for each method at each size; size by size, so that data is loaded once."""
    return [
        Arm(name(method, size), {"method": method, "samples_per_class": size})
        for size in sorted(settings.sizes)
        for method in METHODS
    ]


def check(settings: FineTuningSettings) -> None:
    """Raise ``UserError`` for what no trial could run."""
    study.check_sizes(settings.sizes)
    if not settings.corruptions or settings.probe_passes < 1 or settings.head_rate_factor <= 0:
        raise tl.UserError("--corruptions must name one, --probe-passes be at least 1, --head-rate-factor above 0")
    study.check_training(replace(settings, samples_per_class=max(settings.sizes)))
    for options in shifted(settings).values():
        study.data_module(settings, settings.seed_list()[0], **options)
    stages = len(tl.Stages(tl.create_backbone(settings.backbone, "none", num_classes=2)))
    if not 2 <= settings.top_stages < stages:
        raise tl.UserError(f"--top-stages must be 2 to {stages - 1} for {settings.backbone}, not {settings.top_stages}")


def shifted(settings: FineTuningSettings) -> dict[str, dict[str, Any]]:
    """Return the corrupted test sets. They do not depend on the size: all trials of a seed share them."""
    shared = {"severity": settings.severity, "samples_per_class": min(settings.sizes)}
    return {corruption: {"corruption": corruption, **shared} for corruption in settings.corruptions}


# %% One trial
def run(trial: Trial, settings: FineTuningSettings) -> dict[str, Any]:
    """Train and test one method at one size and seed."""
    study.forget_activations()  # each method pays for its own features
    method, size = trial.arm.factors["method"], trial.arm.factors["samples_per_class"]
    classes = study.data_module(settings, trial.seed, samples_per_class=size).num_classes
    budget = study.equal_steps(classes * size, classes * max(settings.sizes), settings)
    shared: dict[str, Any] = {"data_options": {"samples_per_class": size}, "callbacks": budget.callbacks}
    tuned = {**shared, "epochs": budget.epochs}
    probe = {
        **shared,
        "epochs": budget.epochs * settings.probe_passes,
        "learning_rates": [rate * settings.head_rate_factor for rate in settings.rate_list()],
    }
    tests = shifted(settings)
    if method == LP_FT:
        record = study.probe_then_fine_tune(trial, settings, probe=probe, tests=tests, **tuned)
    elif method == PROBE:
        record = study.train_and_test(trial, settings, freezing="head", tests=tests, **probe)
    else:
        depth = 0 if method == ALL else -settings.top_stages
        record = study.train_and_test(trial, settings, freezing=depth, tests=tests, **tuned)
    record[OUT] = sum(record[f"{prefix}_accuracy"] for prefix in tests) / len(tests)
    return record


# %% What is reported
def pairs(sizes: list[int], first: str, second: str) -> dict[float, study.Pair]:
    """Return the arms of two methods at each size."""
    return {size: (name(first, size), name(second, size)) for size in sizes}


def report(report: study.Report) -> None:
    """Tables, figures and criteria."""
    results, sizes = report.results, sorted(report.settings.sizes)
    for size in sizes:
        report.conclude(_sentence(results, size))
    report.section("Accuracy by method and training-set size", _how_trained(report.settings))
    grid: dict[str, Any] = {"order": METHODS, "column_text": "{} a class"}
    report.text("Test accuracy in percent, with its 95 % interval over the seeds:")
    report.table(study.grid_table(results, "method", "samples_per_class", IN, **grid))
    report.text("Accuracy on corrupted test images in percent:")
    report.table(study.grid_table(results, "method", "samples_per_class", OUT, **grid))
    options: dict[str, Any] = {"number": "samples_per_class", "series": "method", "order": METHODS}
    figure = study.plots.metric_against_number(results, metric=IN, chance=study.one_answer(results), **options)
    report.figure("accuracy_by_size", figure, "Accuracy on test images like the training images.")
    words = ", ".join(report.settings.corruptions).replace("_", " ")
    text = "Accuracy on corrupted test images (%)"
    figure = study.plots.metric_against_number(results, metric=OUT, metric_text=text, **options)
    report.figure("corrupted_accuracy_by_size", figure, f"Mean accuracy over the corrupted test sets: {words}.")
    report.text("The corruptions one by one, mean accuracy over the seeds at the largest size:")
    report.table(_corruption_table(results, report.settings))

    report.section("Is it worth to train more than the head, and to train the head first?", GAINS)
    gains = {}
    for first, second in ((ALL, PROBE), (LP_FT, ALL)):
        for metric, words in ((IN, "in distribution"), (OUT, "corrupted")):
            found = study.comparisons(results, pairs(sizes, first, second), metric)
            gains |= {f"{first} - {second}, {words}": found} if found else {}
    if gains:
        texts = {"number_text": "Training images a class", "gain_text": "Difference in accuracy (points)"}
        figure = study.plots.gains_against_number(gains, **texts)
        report.figure("gains_by_size", figure, "Differences between methods by training-set size.")
    report.section("What it costs", "Seconds of training of the selected model, features and probe phase included.")
    grid |= {"factor": 1.0, "interval": False}
    report.table(study.grid_table(results, "method", "samples_per_class", "train_seconds", **grid))
    largest = results[results["samples_per_class"] == sizes[-1]]
    if len(largest):
        figure = study.plots.pareto(largest.assign(arm=largest["method"]), cost="train_seconds", value=IN)
        report.figure("accuracy_by_time", figure, f"Accuracy against training time with {sizes[-1]} images a class.")
    _criteria(report, sizes)


GAINS = """*all layers - linear probe* asks whether the features should change at all: near or below 0 the data are too
few to improve them. *LP-FT - all layers* asks whether the head should be trained first; by Kumar et al. it should gain
more on corrupted images than on clean ones."""


def _sentence(results: pd.DataFrame, size: int) -> str:
    means = results[results["samples_per_class"] == size].groupby("method")[[IN, OUT]].mean() * 100
    if means.empty:
        return f"With {size} images a class no trial ended."
    best, robust = means[IN].idxmax(), means[OUT].idxmax()
    text = f"With {size} images a class *{best}* had the highest accuracy ({means[IN].max():.1f} %)"
    text += f" and *{robust}* the highest on corrupted images ({means[OUT].max():.1f} %)"
    gain = study.gain_interval(results, (name(ALL, size), name(PROBE, size)), IN).scaled(100)
    return text + (f"; *{ALL}* - *{PROBE}*: {gain.format(1)} points." if gain.n else ".")


def _how_trained(settings: FineTuningSettings) -> str:
    return (
        f"*{TOP}* trains the last {settings.top_stages} stages of {settings.backbone}, the head among them. "
        f"Corruptions have severity {settings.severity} of 5. An accuracy near the share of the most frequent class "
        "is no more than guessing."
    )


def _corruption_table(results: pd.DataFrame, settings: FineTuningSettings) -> pd.DataFrame:
    rows = results[results["samples_per_class"] == max(settings.sizes)]
    columns = {f"{corruption}_accuracy": corruption.replace("_", " ") for corruption in settings.corruptions}
    means = rows.groupby("method", sort=False)[[IN, *columns]].mean().round(3)
    return means.rename(columns={IN: "clean", **columns}).reset_index()


def _criteria(report: study.Report, sizes: list[int]) -> None:
    """2a: LP-FT keeps what fine-tuning has, in and out of distribution; 2b: fine-tuning needs data."""
    settings, results = report.settings, report.results
    bench = f"The findings are of CIFAR-10; this run is on {settings.data}." if settings.data != "cifar10" else ""
    for metric, words, published in ((IN, "in", "+1 point"), (OUT, "out of", "+10 points")):
        gain = study.mean_gain(results, list(pairs(sizes, LP_FT, ALL).values()), metric).scaled(100)
        report.criterion(
            study.Criterion(
                finding="2a",
                claim=f"linear probing first keeps the accuracy of fine-tuning {words} distribution",
                source="Kumar et al. 2022",
                published=f"LP-FT - fine-tuning {published} {words} distribution",
                rule=f"LP-FT - fine-tuning {words} distribution, mean over the sizes, above -{MARGIN} points",
                effect=gain,
                unit="points",
                verdict=decide(gain, -MARGIN, "above"),
                note=bench,
            )
        )
    for when, rule, effect, verdict in _data_rules(results, sizes):
        report.criterion(
            study.Criterion(
                finding="2b",
                claim=f"fine-tuning beats the linear probe when there is data: {when}",
                source="Kornblith et al. 2019",
                published="fine-tuning ahead with full training sets, the probe with few images",
                rule=rule,
                effect=effect,
                unit="points",
                verdict=verdict,
                note=f"{bench} {_sizes_note(sizes)}".strip() if when == GROWS else "",
            )
        )


def _data_rules(results: pd.DataFrame, sizes: list[int]) -> list[tuple[str, str, Interval, Any]]:
    few, many = ((name(ALL, size), name(PROBE, size)) for size in (sizes[0], sizes[-1]))
    small, large = (study.gain_interval(results, pair, IN).scaled(100) for pair in (few, many))
    growth = study.contrast_interval(results, many, few, IN).scaled(100)
    first, last, gain = f"{sizes[0]} a class", f"{sizes[-1]} a class", "fine-tuning - linear probe"
    rule = f"{gain} at {first} below +{NEAR_0:g} point"
    return [
        (f"not with {first}", rule, small, decide(small, NEAR_0, "below")),
        (f"with {last}", f"{gain} at {last} above 0", large, decide(large, 0.0, "above")),
        (GROWS, f"({gain}) at {last} - at {first} above 0", growth, decide(growth, 0.0, "above")),
    ]


def _sizes_note(sizes: list[int]) -> str:
    return "" if sizes[0] <= 10 and sizes[-1] >= 5000 else f"Sizes are {sizes[0]} to {sizes[-1]}, not 10 to 5000."


# %% The study
STUDY = study.Study(
    name="fine_tuning",
    question="Which layers should be fine-tuned, and in which order, for how much data?",
    background=BACKGROUND,
    arms=arms,
    run=run,
    report=report,
    settings=FineTuningSettings,
    check=check,
)

# %%
if __name__ == "__main__":
    study.main(STUDY)
