"""Does transfer gain more where source and target are alike, and can the gain be told beforehand?

Question   How does the gain of transfer (fine-tuning and linear probe over training from random weights) go with the
           distance between source and target, and which distance or transferability score ranks the targets rightly?
Command    python experiments/domain_similarity.py                 EfficientNet-Lite0 on eight targets, laptop
           python experiments/domain_similarity.py --config configs/domain_similarity_elpv.yaml      ELPV as published
           python experiments/domain_similarity.py --config configs/domain_similarity_cifar10.yaml --gpus 1
Expected   Frozen features lose more than fine-tuned ones where the source is far (Yosinski et al. 2014); the gain
           shrinks with data (Raghu et al. 2019); distances and scores go with the gain, none wins everywhere
           (Agostinelli et al. 2022).
"""

# %%
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from tl_lightning import study
from tl_lightning.callbacks import BatchAugmentation
from tl_lightning.errors import UserError
from tl_lightning.study import Arm, Trial, domain_criteria, near_far, transfer_gains
from tl_lightning.study.above_chance import METRIC, train_and_test_above_chance
from tl_lightning.study.domain_settings import DomainSettings
from tl_lightning.study.plots.frames import seeds_text

BACKGROUND = """
A network trained on a **source** (here ImageNet) is used on a **target**. The **gain of transfer** is what that is
worth: accuracy after fine-tuning (or of a *linear probe*: the network frozen, a new head trained) minus accuracy of the
same network trained from random weights on the same target images. Targets differ in number and mixture of their
classes, so accuracy is counted **above chance**: `(r - 1 / C) / (1 - 1 / C)` with the mean recall r of the C classes, 0
for guessing, 1 (100 points) for no error. Otherwise a target of two classes could never gain what one of ten can, and
always saying *functional* would pass for knowledge of solar cells.

**Distances** compare source and target images as the network sees them. The *Frechet distance* compares Gaussians of
the features. ImageNet itself is not needed for it: BatchNorm keeps mean and variance of each of its channels over the
source, part of the weights, so that the source's Gaussian is known exactly at every such layer (independent channels;
the distance is in units of the source's variance, averaged over the layers). The *proxy A-distance* (Ben-David et al.
2007) is how well a classifier tells source from target images, 0 to 2; it does need source images. **Scores** look at
features and labels of the target: *LogME*, *LEEP*, *N-LEEP*, the *H-score* and *k-NN accuracy* ask how easily the
frozen features give the labels. *CKA* (1 for the same representation, 0 for unrelated ones) compares the pretrained
features of the target with those of a random network, and with the fine-tuned ones; the latter is known only after
training, so it explains and does not predict.

**How to read the figures**: in the scatter each point is a target; the bars are 95 % intervals over the seeds. The
rank correlation (Spearman) asks only whether the order agrees, +1 to -1; its interval comes from resampling the
targets. Where it holds 0 nothing is claimed. Variants of one set share images and labels, so eight of them are worth
less than eight independent targets, and the interval is rather too narrow. The second table compares the variants of
one set alone: a score that only tells digits from solar cells gets nothing there.

Sources: Yosinski et al. 2014, "How transferable are features in deep neural networks?"; Raghu et al. 2019,
"Transfusion"; Nguyen et al. 2020 (LEEP); You et al. 2021 (LogME); Bao et al. 2019 (H-score); Agostinelli et al. 2022,
"How stable are transferability metrics evaluations?"; Deitsch et al. 2019 (ELPV).
"""

SCRATCH, TUNED, PROBE = "scratch", "fine-tuned", "linear probe"
METHODS = (SCRATCH, PROBE, TUNED)
GAINS = {TUNED: "gain of fine-tuning", PROBE: "gain of the linear probe"}
UNLEARNT = 0.01  # above chance
PROBE_STEPS = 5  # times the optimizer steps of the others: a probe trains on cached features, nearly for nothing


# %% The grid
def arms(settings: DomainSettings) -> list[Arm]:
    """Return the arms: every method on every target, then training-set sizes, the published split, near and far."""
    targets = study.parse_targets(settings.targets, settings.data_dir)
    grid = [
        Arm(f"{text}, {method}", {"part": "targets", "target": text, "set": target.base, "method": method})
        for text, target in zip(settings.targets, targets, strict=True)
        for method in METHODS
    ]
    for size in settings.sizes:
        for method in (SCRATCH, TUNED):
            factors = {"part": "sizes", "target": settings.sizes_target, "method": method, "images_a_class": size}
            grid.append(Arm(sized(settings, size, method), factors))
    if settings.published_epochs:
        grid.append(Arm("elpv as published", {"part": "published", "target": "elpv", "method": TUNED}))
    return [*grid, *(near_far.crossed_arms((PROBE, TUNED)) if settings.near_far else [])]


def sized(settings: DomainSettings, size: int, method: str) -> str:
    """Return the name of an arm that varies the training-set size."""
    return f"{settings.sizes_target}, {size} a class, {method}"


def check(settings: DomainSettings) -> None:
    """Refuse before the first trial what none could run."""
    if min([*settings.sizes, settings.train_images, settings.near_far_epochs, settings.published_epochs + 1]) < 1:
        raise UserError("sizes, train_images and near_far_epochs must be at least 1, published_epochs not negative")
    if settings.data != DomainSettings.data or settings.samples_per_class is not None:
        raise UserError("this study takes --targets and --train-images in place of --data and --samples-per-class")
    if not settings.near_far_rate > 0 or settings.published_size < 0:
        raise UserError("near_far_rate must be above 0 and published_size not negative")
    if not arms(settings):
        raise UserError("nothing to train: name at least one of targets, sizes, published_epochs and near_far")
    wanted = [settings.options(target.text) for target in study.parse_targets(settings.targets, settings.data_dir)]
    wanted += [settings.options(settings.sizes_target, max(settings.sizes))] if settings.sizes else []
    wanted += [settings.options(settings.source_images)] if settings.source_images else []
    wanted += [settings.options("elpv")] if settings.published_epochs else []
    for options in wanted:
        images = study.data_module(settings, settings.seed_list()[0], **options)
        if len(images.val_set) < 4:
            raise UserError(f"{options['name']} has {len(images.val_set)} validation images where 4 are needed")
    if wanted:
        study.check_training(replace(settings, data=wanted[0]["name"], data_dir=wanted[0]["data_dir"]))
    near_far.check_domains(settings.domains(), settings.small())


# %% One trial
def run(trial: Trial, settings: DomainSettings) -> dict[str, Any]:
    """Train and test one arm at one seed; a linear probe's record holds the scores, that of fine-tuning the CKA."""
    part, method = trial.arm.factors["part"], trial.arm.factors["method"]
    if part == "near and far":
        return near_or_far(trial, settings)
    if part == "published":
        return as_published(trial, settings)
    options = settings.options(trial.arm.factors["target"], trial.arm.factors.get("images_a_class"))
    classes = settings.target(trial.arm.factors["target"]).num_classes
    epochs = settings.epochs_for(options["samples_per_class"] * classes)
    record = train_and_test_above_chance(
        trial,
        settings,
        freezing="head" if method == PROBE else 0,
        weights="none" if method == SCRATCH else settings.weights,
        epochs=epochs * (PROBE_STEPS if method == PROBE else 1),
        data_options=options,
        inspect=inspector(trial, settings) if part == "targets" else None,
    )
    return {**record, "data": trial.arm.factors["target"]}


def as_published(trial: Trial, settings: DomainSettings) -> dict[str, Any]:
    """Fine-tune on the published split of ELPV: 75 % to train on, of which a fifth selects, 25 % to test on.

    A solar cell is as good upside down: mirrored at random where the settings ask for it.
    """
    options = settings.options(trial.arm.factors["target"])
    options |= {"samples_per_class": None, "val_samples": None, "test_samples": None}
    options |= {"image_size": settings.published_size or settings.image_size}
    mirrored = partial(BatchAugmentation, flip=True, vertical_flip=True, seed=trial.seed)
    record = train_and_test_above_chance(
        trial,
        settings,
        epochs=settings.published_epochs,
        augmentation=mirrored if settings.published_flips else None,
        data_options=options,
    )
    return {**record, "data": trial.arm.factors["target"], "image_size": options["image_size"]}


def inspector(trial: Trial, settings: DomainSettings) -> Any:
    """Return what measures the scores of an arm's target, before the test set is opened."""

    def scores(module: Any, images: Any) -> Mapping[str, Any]:
        known = None
        if settings.source_images:
            known = study.data_module(settings, trial.seed, **settings.options(settings.source_images))
        names = {"backbone": settings.backbone, "weights": settings.weights}
        return study.measure_scores(module, images, settings, trial.seed, **names, source=known)

    def kept(module: Any, images: Any) -> Mapping[str, Any]:
        classes, rate = images.num_classes, 1e-3
        before = study.build_module(trial.seed, settings.backbone, settings.weights, classes, rate, settings, {})
        return {"score_cka_tuned": study.kept_features(before, module, images)}

    return {PROBE: scores, TUNED: kept}.get(str(trial.arm.factors["method"]))


def near_or_far(trial: Trial, settings: DomainSettings) -> dict[str, Any]:
    """Take a network of one domain's classes to other classes of the same or the other domain."""
    domains, probe = settings.domains(), trial.arm.factors["method"] == PROBE
    classes = len(domains[near_far.NAMES.index(str(trial.arm.factors["to"]))].wanted)
    images = max(2, settings.train_images // classes)
    return near_far.run_crossed(
        trial,
        settings.small(),
        domains,
        near_far.Pretraining(settings.near_far_epochs, settings.near_far_rate, settings.near_far_images),
        samples_per_class=images,
        freezing="head" if probe else 0,
        epochs=settings.epochs_for(images * classes) * (PROBE_STEPS if probe else 1),
    )


# %% What is reported
def report(report: study.Report) -> None:
    """Tables, figures and criteria."""
    trials = report.results[report.results["part"] == "targets"]
    points = transfer_gains.gains_by_target(trials, (TUNED, PROBE), SCRATCH, METRIC)
    if len(points):
        _gains(report, trials, points)
    if (overlap := report.settings.overlap()) and report.settings.weights != "none":
        report.conclude(f"**Overlap** of targets with ImageNet, if that is the source: {overlap}.")
    if transfer_gains.rankable(points, (TUNED, PROBE)):
        _correlations(report, points)
    for method, name in GAINS.items() if report.settings.targets else ():
        report.criterion(domain_criteria.scores_go_with_gain(points, method, name))
    near_and_far = report.results[report.results["part"] == "near and far"]
    probe, tuned = (near_far.near_minus_far(near_and_far, method, METRIC) for method in (PROBE, TUNED))
    if probe and tuned:
        _near_and_far(report, near_and_far, probe, tuned)
    if report.settings.near_far:
        for criterion in domain_criteria.near_beats_far(probe, tuned, report.settings.near_far):
            report.criterion(criterion)
    if report.settings.sizes:
        _sizes(report)
    published = report.results.loc[report.results["part"] == "published", "test_accuracy"]
    report.criterion(domain_criteria.published_accuracy(published))


def _gains(report: study.Report, trials: pd.DataFrame, points: pd.DataFrame) -> None:
    worth = points[points[f"{TUNED} low"] > 0]
    lowest, highest = points[list(GAINS)].min() * 100, points[list(GAINS)].max() * 100
    between = {m: f"between {lowest[m]:.0f} and {highest[m]:.0f}" for m in GAINS}
    if len(points) == 1:
        between = {m: f"at {lowest[m]:.0f}" for m in GAINS}
    report.conclude(
        f"Fine-tuning gains over training from random weights on {len(worth)} of {len(points)} targets (interval above "
        f"0); over all of them its gains lie {between[TUNED]} points above chance, those of the linear probe "
        f"{between[PROBE]}."
    )
    flat = trials[trials["method"] == SCRATCH].groupby("target")[METRIC].mean() <= UNLEARNT
    if flat.any():
        report.conclude(
            f"From random weights nothing is learnt that the test shows on {flat.sum()} of {len(flat)} targets: the "
            "gain there is the accuracy above chance of the transferred network."
        )
    report.section("Gain by target", "Test accuracy; gains in points above chance, 95 % intervals over seeds.")
    report.table(transfer_gains.gain_table(trials, points, METHODS, GAINS))
    report.text("What was measured on the training images of each target, the mean over the seeds:")
    report.table(transfer_gains.score_table(points))
    if len(points) < 2 or "score_frechet_bn" not in points or points["score_frechet_bn"].isna().any():
        return
    for method, name in GAINS.items():
        figure = study.plots.named_points(
            transfer_gains.scatter_frame(points, "score_frechet_bn", method, 100),
            "Frechet distance to the source's BatchNorm statistics (in units of the source's variance)",
            f"{name.capitalize()} (points above chance)",
            seeds_text(trials),
        )
        caption = f"{name.capitalize()} against the distance between source and target, a point a target."
        report.figure(f"{name.replace(' ', '_')}_by_distance", figure, caption)


def _correlations(report: study.Report, points: pd.DataFrame) -> None:
    found = {method: transfer_gains.correlations(points, method) for method in GAINS}
    within = {method: transfer_gains.correlations_within(points, method) for method in GAINS}
    for method, name in GAINS.items():
        report.conclude(transfer_gains.sentence(found[method], name))
    names = list(found[TUNED])
    missing = [f"{score.name} (needs {score.needs})" for score in study.SCORES if score.name not in names]
    report.section(
        "Which score ranks the targets",
        "Rank correlation with the gain, turned so that above 0 is as expected (distances count negative). Each is a "
        f"95 % interval by itself: of {2 * len(names)}, about one in twenty misses by chance."
        + (f" Not measured: {'; '.join(missing)}." if missing else ""),
    )
    rows = {score: {GAINS[method]: found[method][score] for method in GAINS} for score in names}
    figure = study.plots.correlation_forest(rows, "Rank correlation with the gain", list(GAINS.values()))
    report.figure("correlations", figure, "Rank correlation of scores with the gain; hollow: the interval holds 0.")
    report.text(
        "The same among the variants of one set alone, all sets together; without intervals, as so few sets cannot be "
        "resampled, and so without claims:"
    )
    report.table(
        pd.DataFrame(
            {"score": score} | {name: transfer_gains.text(within[method].get(score)) for method, name in GAINS.items()}
            for score in names
        )
    )


def _near_and_far(report: study.Report, trials: pd.DataFrame, probe: dict[Any, float], tuned: dict[Any, float]) -> None:
    report.section(
        "Near and far sources",
        "A network pretrained on some classes of each of two domains is taken to other classes of both: "
        f"{' (A) and '.join(report.settings.near_far)} (B). Near minus far, averaged over the two targets: how good a "
        "source is, or how hard a target, cancels out. Here the source images are known, so that the distances that "
        "need them are measured, too.",
    )
    columns = {METRIC: "test accuracy above chance", "score_a_distance": "proxy A-distance"}
    columns |= {"score_frechet_images": "Frechet distance", "source_val_accuracy": "accuracy on the source"}
    shown = {column: name for column, name in columns.items() if column in trials}
    means = trials.groupby(["to", "source"], sort=False)[list(shown)[1:]].mean().rename(columns=shown)
    for method in (PROBE, TUNED):
        above = trials[trials["method"] == method].groupby(["to", "source"], sort=False)[METRIC].mean()
        means[f"{method} (points above chance)"] = (100 * above).round(1)
    report.table(means.reset_index())
    report.text("Distances are measured with each source's own network, so that those of two sources share no scale.")
    near, fine = (study.statistics.mean_interval(list(gaps.values())).scaled(100) for gaps in (probe, tuned))
    report.conclude(
        f"Near minus far sources: {near.format(1)} points above chance for the linear probe, {fine.format(1)} for "
        "fine-tuning."
    )


def _sizes(report: study.Report) -> None:
    settings, trials = report.settings, report.results[report.results["part"] == "sizes"]
    pairs = {n: (sized(settings, n, TUNED), sized(settings, n, SCRATCH)) for n in sorted(settings.sizes)}
    pairs = {n: pair for n, pair in pairs.items() if set(pair) <= set(trials["arm"])}
    if pairs:
        report.section("More training images", f"Fine-tuning minus scratch on {settings.sizes_target}, equal steps.")
        gains = {
            n: study.statistics.mean_interval(list(study.gain(trials, p, METRIC).values())) for n, p in pairs.items()
        }
        shown = [{"images a class": n, "gain (points above chance)": g.scaled(100).format(1)} for n, g in gains.items()]
        report.table(pd.DataFrame(shown))
    trend = study.gain_trend(trials, pairs, METRIC) if len(pairs) > 1 else None
    report.criterion(domain_criteria.gain_shrinks(trend, settings.sizes_target, settings.sizes))


# %% The study
STUDY = study.Study(
    name="domain_similarity",
    question="Does transfer gain more where source and target are alike, and can it be told beforehand?",
    background=BACKGROUND,
    arms=arms,
    run=run,
    report=report,
    settings=DomainSettings,
    check=check,
)

# %%
if __name__ == "__main__":
    study.main(STUDY)
