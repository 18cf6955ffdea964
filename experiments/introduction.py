"""What does transfer give, before any training and after little?

Question   How good are pretrained features as they are, how many images and how much time does a pretrained start
           save, and is it the other classes' images that help or just more training?
Command    python experiments/introduction.py             EfficientNet-Lite0/1/2 on solar cells and an own network on
                                                          handwritten digits, laptop, 8 minutes
           python experiments/introduction.py --config configs/introduction_cifar10.yaml --gpus 1
Expected   Pretrained features beat random ones before any training; pretraining multiplies the data (Hernandez et al.
           2021); transfer helps even with full data (Yosinski et al. 2014), more with little.
"""

# %%
from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from tl_lightning import study
from tl_lightning.errors import UserError
from tl_lightning.study import Arm, Trial
from tl_lightning.study.data_multiplier import Multiplier
from tl_lightning.study.intervals import NOT_MEASURED, Interval

BACKGROUND = """
**Transfer learning** begins with the weights that a network learnt on a *source* task and goes on with them on a
*target* task. This introduction looks at what is gained, in three steps.

1. *Before any training.* A network without its last layer turns an image into **features**. Are they any good for
   classes that the network never saw? **k nearest neighbours** (k-NN) gives an image the class of the training images
   whose features are most alike; a **linear probe** is a linear classifier on the features. Neither changes the
   network. The same network with random weights shows what the architecture gives by itself.
2. *After little training.* **Fine-tuning** trains all weights, beginning with the pretrained ones; **scratch** begins
   with random ones and here takes three times the steps. How many times more images does scratch need for the
   accuracy that fine-tuning has with n a class? This **effective-data multiplier** is the horizontal distance between
   the two lines in the figure; where scratch never gets there it is only known to be larger than what was tried.
3. *Where does the gain come from?* An own small network is pretrained on some classes of a set and transferred to the
   others, so that all is known of its source. Controls: **scratch**, as many steps on the target; **self-transfer**,
   pretrained on the very target images with as many steps as the source and then fine-tuned like transfer: it
   had the training, but not the other images; and **frozen** networks of which the head alone trains, with source
   weights and with random ones.

Sources: Yosinski et al. 2014, "How transferable are features in deep neural networks?"; Hernandez et al. 2021, "Scaling
laws for transfer"; Kornblith et al. 2019, "Do better ImageNet models transfer better?".
"""

LONGER = 3  # times the steps of fine-tuning that scratch gets in the second step
PUBLISHED_SIZE = 50  # images a class at which the findings are judged where it is among the sizes
FEATURES, DATA, OWN = "features", "data", "own network"
PRETRAINED, RANDOM = "pretrained", "random weights"
FINE, SCRATCH = "fine-tuned", f"scratch {LONGER}x"
TRANSFER, OWN_SCRATCH, SELF = "transfer", "scratch", "self-transfer"
FROZEN, FROZEN_RANDOM = "frozen transfer", "frozen random"
OWN_METHODS = {  # what the network begins with, and whether its head alone trains
    TRANSFER: ("source", False),
    SELF: ("self", False),
    OWN_SCRATCH: ("random", False),
    FROZEN: ("source", True),
    FROZEN_RANDOM: ("random", True),
}


@dataclass
class Settings(study.Settings):
    """Settings of this study.

    Args:
        backbones: Networks whose features are judged without training; with torchvision's where there is network.
        sizes: Training images a class of the first and second step; fine-tuning leaves out the largest.
        steps: Optimizer steps of fine-tuning in the second step, rounded up to whole epochs (in place of epochs).
        scratch_learning_rates: Learning rates from random weights and of heads alone, as many as the others.
        own_data: Image set of the third step.
        own_data_dir: Its folder.
        own_backbone: Network of the third step.
        own_image_size: Side in pixels of its images.
        own_source: Classes that it is pretrained on.
        own_target: Classes that it is transferred to.
        own_source_samples: Training images of each source class; all of them by default.
        own_epochs: Epochs of its pretraining.
        own_sizes: Training images of each target class.
        own_steps: Optimizer steps on the target.
    """

    backbones: list[str] = field(default_factory=lambda: ["efficientnet_lite0"])
    sizes: list[int] = field(default_factory=lambda: [50, 150, 450])
    steps: int = 20
    scratch_learning_rates: float | list[float] = 3e-3
    own_data: str = "digits"
    own_data_dir: str | None = None
    own_backbone: str = "shufflenet_v2_x1_0"
    own_image_size: int = 32
    own_source: list[str] = field(default_factory=lambda: ["0", "1", "2", "3", "4"])
    own_target: list[str] = field(default_factory=lambda: ["5", "6", "7", "8", "9"])
    own_source_samples: int | None = None
    own_epochs: int = 12
    own_sizes: list[int] = field(default_factory=lambda: [10, 50])
    own_steps: int = 60


# %% The grid
def name(method: str, size: int, part: str = DATA) -> str:
    """Return the name of an arm."""
    return f"{'own: ' if part == OWN else ''}{method}, {size} a class"


def at(sizes: list[int]) -> int:
    """Return the number of images a class at which a finding is judged: 50, else the smallest."""
    return PUBLISHED_SIZE if PUBLISHED_SIZE in sizes else min(sizes)


def arms(settings: Settings) -> list[Arm]:
    """Return the arms of the three steps."""
    few, sizes = at(settings.sizes), sorted(settings.sizes)
    grid = [
        Arm(
            f"features of {backbone}, {start}",
            {"part": FEATURES, "method": start, "samples_per_class": few, "network": backbone},
        )
        for backbone in settings.backbones
        for start in (PRETRAINED, RANDOM)
    ]
    cells = [(DATA, FINE, n) for n in sizes[:-1]] + [(DATA, SCRATCH, n) for n in sizes]
    cells += [(OWN, method, n) for n in sorted(settings.own_sizes) for method in OWN_METHODS]
    for part, method, n in cells:
        network = settings.own_backbone if part == OWN else settings.backbone
        grid.append(
            Arm(name(method, n, part), {"part": part, "method": method, "samples_per_class": n, "network": network})
        )
    return grid


def own(settings: Settings) -> study.OwnTransfer:
    """Return the third step: an own network from some classes to others."""
    of_own = {field: getattr(settings, f"own_{field}") for field in ("data", "data_dir", "backbone", "image_size")}
    return study.OwnTransfer(
        replace(settings, weights="none", **of_own),
        settings.own_source,
        settings.own_target,
        settings.own_epochs,
        settings.own_steps,
        study.rates(settings.scratch_learning_rates),
        settings.own_source_samples,
    )


def check(settings: Settings) -> None:
    """Refuse what no trial could run."""
    study.check_sizes(settings.sizes)
    study.check_sizes(settings.own_sizes, "--own-sizes")
    study.check_rates("--scratch-learning-rates", settings.scratch_learning_rates, len(settings.rate_list()))
    for name in ("steps", "own_steps", "own_epochs"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(settings, name)}")
    twice = sorted(set(settings.own_source) & set(settings.own_target))
    if twice:
        raise UserError(f"--own-source and --own-target must not share classes, but both name {', '.join(twice)}")
    if settings.weights == "none":
        raise UserError("--weights none leaves nothing to transfer: name pretrained weights")
    seed = settings.seed_list()[0]
    study.data_module(settings, seed, samples_per_class=max(settings.sizes))
    for backbone in dict.fromkeys([*settings.backbones, settings.backbone]):
        study.check_training(replace(settings, backbone=backbone))
    own(settings).check(max(settings.own_sizes), seed)
    study.check_training(own(settings).settings)


# %% One trial
def run(trial: Trial, settings: Settings) -> dict[str, object]:
    """Run one arm of one of the three steps at one seed."""
    factors = trial.arm.factors
    part, method, n = (factors[key] for key in ("part", "method", "samples_per_class"))
    if part == FEATURES:
        weights = settings.weights if method == PRETRAINED else "none"
        backbone = factors["network"]
        return study.probe_features(settings, trial.seed, backbone=backbone, weights=weights, samples_per_class=n)
    if part == OWN:
        start, frozen = OWN_METHODS[method]
        return own(settings).run(trial, start, n, frozen=frozen)
    scratch = method == SCRATCH
    images = study.data_module(settings, trial.seed, samples_per_class=n)
    steps = settings.steps * (LONGER if scratch else 1)
    return study.train_and_test(
        trial,
        settings,
        weights="none" if scratch else settings.weights,
        epochs=study.epochs_for(steps, len(images.train_set), settings.batch_size),
        learning_rates=study.rates(settings.scratch_learning_rates) if scratch else None,
        data_options={"samples_per_class": n},
    )


# %% What is reported
def report(report: study.Report) -> None:
    """Tables, figures and criteria."""
    settings, results = report.settings, report.results
    _features(report, results[results["part"] == FEATURES])
    multipliers = _data(report, results[results["part"] == DATA])
    _own(report, results[results["part"] == OWN])
    _criteria(report, multipliers, at(settings.sizes), at(settings.own_sizes))


def _features(report: study.Report, results: pd.DataFrame) -> None:
    """Show the first step."""
    settings, few = report.settings, at(report.settings.sizes)
    report.section(
        "1. Before any training",
        f"Features judged on the validation images with {few} labelled images a class; above the random weights' line "
        "lies what pretraining gives.",
    )
    for metric, words in (("val_probe_accuracy", "linear probe"), ("val_knn_accuracy", "5 nearest neighbours")):
        figure = study.plots.accuracy_against_factor(
            results, settings.backbones, metric=metric, factor="network", series="method", factor_text="Network"
        )
        report.figure(f"features_{metric.split('_')[1]}", figure, f"Accuracy of the {words} without training.")
        gains = {
            backbone: study.compare(
                results, f"features of {backbone}, {PRETRAINED}", f"features of {backbone}, {RANDOM}", metric
            )
            for backbone in settings.backbones
        }
        told = ", ".join(f"{c.difference.scaled(100).format(1)} ({backbone})" for backbone, c in gains.items())
        report.conclude(f"Before any training pretrained features gain, {words}, in points over random ones: {told}.")


def _data(report: study.Report, results: pd.DataFrame) -> dict[int, Multiplier]:
    """Show the second step; return the multiplier by images a class."""
    sizes = sorted(report.settings.sizes)
    images = study.data_module(report.settings, report.settings.seed_list()[0])
    share = images.label_counts("val").max().item() / len(images.val_set)
    report.section(
        "2. After little training",
        "The horizontal distance of the lines is the effective data. Who always names the most frequent class is right "
        f"in {100 * share:.0f} % of the validation images.",
    )
    figure = study.plots.metric_against_number(
        results, "samples_per_class", "method", order=(FINE, SCRATCH), chance=study.one_answer(results)
    )
    report.figure("accuracy_by_images", figure, "Test accuracy by the number of training images a class.")
    curve = {n: name(SCRATCH, n) for n in sizes}
    multipliers = {n: study.effective_data(results, name(FINE, n), n, curve) for n in sizes[:-1]}
    told = "; ".join(f"{multiplier.format()} at {n} a class" for n, multiplier in multipliers.items())
    report.conclude(f"Times the images that *{SCRATCH}* needs for what *{FINE}* reaches: {told}.")
    curves = study.with_images_seen(report.curves, results)
    few = at(sizes)
    figure = study.plots.learning_curves(curves, arms=[name(FINE, few), name(SCRATCH, few)], x="images_seen")
    report.figure("learning_curves", figure, "Training loss and validation accuracy by the images seen.")
    for n in sizes[:-1]:
        race = study.race_sentence(curves, name(FINE, n), name(SCRATCH, n))
        report.conclude(race)
        report.text(race)
    report.table(study.arm_table(results, report.arms))
    return multipliers


def _own(report: study.Report, results: pd.DataFrame) -> None:
    """Show the third step."""
    settings, n = report.settings, at(report.settings.own_sizes)
    source, target = (", ".join(names) for names in (settings.own_source, settings.own_target))
    report.section(
        "3. Where the gain comes from",
        f"{settings.own_backbone}, pretrained on the classes {source} of {settings.own_data}, transferred to {target}.",
    )
    figure = study.plots.metric_against_number(results, "samples_per_class", "method", order=list(OWN_METHODS))
    report.figure("own_network", figure, "Test accuracy on the target classes by the number of training images.")
    pairs = [(TRANSFER, OWN_SCRATCH), (SELF, OWN_SCRATCH), (TRANSFER, SELF), (FROZEN, FROZEN_RANDOM)]
    found = {f"{a} - {b}": study.compare(results, name(a, n, OWN), name(b, n, OWN), "test_accuracy") for a, b in pairs}
    report.figure("own_differences", study.plots.paired_differences(found), f"Paired differences at {n} a class.")
    told = "; ".join(f"*{pair}* {c.difference.scaled(100).format(1)}" for pair, c in found.items())
    report.conclude(f"Own network, {n} target images a class, points of test accuracy: {told}.")
    unfinished = results.loc[results["source_reached_plateau"] == False, "arm"].unique()  # noqa: E712
    if len(unfinished):
        report.conclude(
            f"**Source not trained to a plateau** in at least one seed for: "
            f"{'; '.join(f'*{arm}*' for arm in unfinished)}."
        )
    report.table(study.arm_table(results, report.arms))


def _criteria(report: study.Report, multipliers: dict[int, Multiplier], few: int, own_few: int) -> None:
    """1a: gain of transfer between classes, shrinking; 1b: effective-data multiplier, falling."""
    settings, results = report.settings, report.results
    rows = results[results["part"] == OWN]
    pairs = {n: (name(TRANSFER, n, OWN), name(OWN_SCRATCH, n, OWN)) for n in sorted(settings.own_sizes)}
    gain = study.compare(rows, *pairs[own_few], "test_accuracy").difference
    trend = study.gain_trend(rows, pairs, "test_accuracy")
    own_bench = (
        f"The published bench is ImageNet, here {settings.own_data} with {settings.own_backbone}; what a control with "
        "the same training on the target images alone gains is told at the top."
    )
    bench = f"Published for text; judged here on {settings.data} with {settings.backbone}. Scratch has {LONGER}x steps."
    worth, ratio = multipliers[few].interval, _fall(multipliers)
    for finding, claim, source, published, rule, effect, unit, bound, direction, note in [
        ("1a", "transfer between classes of one set helps", "Yosinski et al. 2014", "+1.6 points with full data",
         f"{TRANSFER} - {OWN_SCRATCH} at {own_few} a class above 0", gain.scaled(100), "points", 0.0, "above",
         own_bench),
        ("1a", "the gain shrinks with more data", "Yosinski et al. 2014", "+1.6 points with full data",
         "slope of the gap in log10 n below 0", trend.scaled(100), "points a tenfold n", 0.0, "below", own_bench),
        ("1b", "pretraining multiplies effective data", "Hernandez et al. 2021", "large where data are few",
         f"multiplier at {few} a class above 3", worth, "times the images", 3.0, "above",
         f"{bench} {multipliers[few].format()}. Not decided where it is only bounded in a seed."),
        ("1b", "the multiplier falls with n", "Hernandez et al. 2021", "large where data are few",
         f"multiplier at {max(multipliers)} / at {min(multipliers)} a class below 1", ratio, "ratio", 1.0, "below",
         f"{bench} Not decided where a multiplier is only bounded, as the bounds fall by themselves."),
    ]:  # fmt: skip
        report.criterion(
            study.Criterion(
                finding=finding,
                claim=claim,
                source=source,
                published=published,
                rule=rule,
                effect=effect,
                unit=unit,
                verdict=study.statistics.decide(effect, bound, direction),
                note=note,
            )
        )


def _fall(multipliers: dict[int, Multiplier]) -> Interval:
    """Return the ratio of the multiplier at the most images to that at the fewest, without bounds if it is censored."""
    few, many = multipliers[min(multipliers)], multipliers[max(multipliers)]
    pairs = study.statistics.shared(many.by_seed, few.by_seed)
    if not pairs[0]:
        return NOT_MEASURED
    ratio = study.statistics.paired_ratio(*pairs)
    if few is many or few.never or few.always or many.never or many.always:
        return Interval(ratio.mean, np.nan, np.nan, ratio.n)
    return ratio


# %% The study
STUDY = study.Study(
    name="introduction",
    question="What does transfer give, before any training and after little?",
    background=BACKGROUND,
    arms=arms,
    run=run,
    report=report,
    settings=Settings,
    check=check,
)

# %%
if __name__ == "__main__":
    study.main(STUDY)
