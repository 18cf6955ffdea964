"""How much does a pretrained network gain over random weights, and when does the gain vanish?

Question   How do fine-tuning and training from scratch compare over the images seen and over the number of training
           images, with 1x and 5x the optimizer steps, and when 40 % of the labels are wrong?
Command    python experiments/transfer_vs_scratch.py      EfficientNet-Lite0 on handwritten digits, laptop, 7 minutes
           python experiments/transfer_vs_scratch.py --config configs/transfer_vs_scratch_cifar10.yaml --gpus 1
Expected   A large gap with few images that closes with many and with longer training (He et al. 2018, "Rethinking
           ImageNet pre-training"); wrong labels hurt scratch more (Hendrycks et al. 2019).
"""

# %%
from __future__ import annotations

from dataclasses import dataclass, field

from tl_lightning import study
from tl_lightning.errors import UserError
from tl_lightning.study import Arm, Trial

BACKGROUND = """
**Fine-tuning** begins with weights learnt on another, large set (here ImageNet) and trains all of them on the new
images. **From scratch** the same network begins with random weights. Pretrained weights save the network from learning
edges and textures once more, so they should matter most where there are few images or little time. A comparison that
gives scratch no more steps than fine-tuning shows speed as well as quality; therefore scratch is trained with the same
number of steps (1x) **and** with five times as many (5x), each with a range of learning rates of its own, equally many
for all. Every arm of a size takes the same number of optimizer steps whatever its number of images, so that more images
do not mean more training.

**How to read the figures**: *accuracy by number of images* shows a line for each way to begin; the vertical distance of
two lines is the gap, drawn by itself with its interval in the next figure; it should fall from left to right. The
horizontal distance is the **effective data** (Hernandez et al. 2021): how many times more images scratch needs for
what fine-tuning reaches. *Learning curves* show the same fits by the training images seen, repeats counted.

**Label noise**: a share of the training labels is replaced by another class; validation and test labels stay right. The
*drop* is the accuracy with right labels minus that with noisy ones. A network that is hardly better than chance has
nothing to drop, so the drops are compared with the scratch network that was trained longest.

Sources: He et al. 2018, "Rethinking ImageNet pre-training"; Kornblith et al. 2019, "Do better ImageNet models transfer
better?"; Hendrycks et al. 2019, "Using pre-training can improve model robustness and uncertainty"; Hernandez et al.
2021, "Scaling laws for transfer".
"""

LONGER = 5
FINE, SHORT, LONG, FINE_LONG = "fine-tuned", "scratch 1x", "scratch 5x", "fine-tuned 5x"
METHODS = {FINE: ("pretrained", 1), SHORT: ("scratch", 1), LONG: ("scratch", LONGER), FINE_LONG: ("pretrained", LONGER)}
CROSSED = (FINE, SHORT, LONG)  # at every size; fine-tuned 5x and noisy labels at one size alone
NOISY = (FINE, LONG)
PUBLISHED_SIZE = 50  # images a class at which the findings are judged where it is among the sizes, else the largest
SEEN = ("data", "test_fingerprint", "transform_fingerprint", "learning_rates_tried")  # alike with and without noise


@dataclass
class Settings(study.Settings):
    """Settings of this study.

    Args:
        sizes: Training images a class; noisy labels are tried at 50 or, where that is not among them, at the largest.
        steps: Optimizer steps of a 1x arm, rounded up to whole epochs (in place of epochs).
        scratch_learning_rates: Learning rates that the scratch arms try, as many as the others.
        label_noise: Share of wrong training labels.
    """

    sizes: list[int] = field(default_factory=lambda: [10, 50, 100])
    steps: int = 50
    scratch_learning_rates: float | list[float] = 3e-3
    label_noise: float = 0.4


# %% The grid
def name(method: str, size: int, noise: float = 0.0) -> str:
    """Return the name of an arm."""
    return f"{method}, {size} a class" + (f", {100 * noise:g} % wrong labels" if noise else "")


def focus(settings: Settings) -> int:
    """Return the number of images a class at which everything is tried."""
    return PUBLISHED_SIZE if PUBLISHED_SIZE in settings.sizes else max(settings.sizes)


def arms(settings: Settings) -> list[Arm]:
    """Return every method at every size, and at one of them noisy labels and 5x fine-tuning."""
    size = focus(settings)
    cells = [(method, n, 0.0) for n in sorted(settings.sizes) for method in CROSSED]
    cells += [(FINE_LONG, size, 0.0), *((method, size, settings.label_noise) for method in NOISY)]
    return [
        Arm(name(*cell), {"method": cell[0], "samples_per_class": cell[1], "label_noise": cell[2]}) for cell in cells
    ]


def check(settings: Settings) -> None:
    """Refuse what no trial could run."""
    study.check_sizes(settings.sizes)
    if settings.steps < 1:
        raise UserError(f"--steps must be at least 1, not {settings.steps}")
    if not 0 < settings.label_noise < 1:
        raise UserError(f"--label-noise must lie between 0 and 1, not {settings.label_noise}")
    if settings.weights == "none":
        raise UserError("--weights none leaves nothing to compare with scratch: name pretrained weights")
    study.check_rates("--scratch-learning-rates", settings.scratch_learning_rates, len(settings.rate_list()))
    study.data_module(settings, settings.seed_list()[0], samples_per_class=max(settings.sizes))
    study.check_training(settings)


# %% One trial
def run(trial: Trial, settings: Settings) -> dict[str, object]:
    """Train and test one arm at one seed."""
    factors = trial.arm.factors
    start, times = METHODS[factors["method"]]
    options = {key: factors[key] for key in ("samples_per_class", "label_noise")}
    images = study.data_module(settings, trial.seed, **options)
    scratch = start == "scratch"
    return study.train_and_test(
        trial,
        settings,
        weights="none" if scratch else settings.weights,
        epochs=study.epochs_for(times * settings.steps, len(images.train_set), settings.batch_size),
        learning_rates=study.rates(settings.scratch_learning_rates) if scratch else None,
        data_options=options,
    )


# %% What is reported
def report(report: study.Report) -> None:
    """Tables, figures and criteria."""
    settings, results = report.settings, report.results
    sizes, size = sorted(settings.sizes), focus(settings)
    clean = results[(results["label_noise"] == 0) & results["method"].isin(CROSSED)]

    report.section("Over the number of training images", "The vertical distance of two lines is the gap.")
    figure = study.plots.metric_against_number(
        clean, "samples_per_class", "method", order=CROSSED, chance=study.one_answer(clean)
    )
    report.figure("accuracy_by_images", figure, "Test accuracy by the number of training images a class.")
    gaps = {
        f"fine-tuned - {method}": {
            n: study.compare(results, name(FINE, n), name(method, n), "test_accuracy") for n in sizes
        }
        for method in (SHORT, LONG)
    }
    for words, by_size in gaps.items():
        told = "; ".join(f"{c.difference.scaled(100).format(1)} at {n} a class" for n, c in by_size.items())
        report.conclude(f"The gap *{words}* in points of test accuracy: {told}.")
    figure = study.plots.gains_against_number(
        gaps, number_text="Training images a class", gain_text="Gap in test accuracy (points)"
    )
    report.figure("gap_by_images", figure, "Gap between fine-tuning and scratch; above 0 fine-tuning is better.")
    for method in (SHORT, LONG):
        curve = {n: name(method, n) for n in sizes}
        worth = [
            f"{study.effective_data(results, name(FINE, n), n, curve).format()} at {n} a class" for n in sizes[:-1]
        ]
        report.conclude(f"Effective data, times the images that *{method}* needs for as much: {'; '.join(worth)}.")
    report.table(study.arm_table(results, report.arms))

    curves = study.with_images_seen(report.curves, results)
    even = study.compare(results, name(FINE_LONG, size), name(LONG, size), "test_accuracy").difference.scaled(100)
    races = [study.race_sentence(curves, name(method, size), name(LONG, size)) for method in (FINE, FINE_LONG)]
    for sentence in (f"With 5x the steps for both the gap at {size} a class is {even.format(1)} points.", *races):
        report.conclude(sentence)
    report.section(f"Over the images seen, {size} a class", " ".join(races))
    shown = [name(method, size) for method in METHODS]
    figure = study.plots.learning_curves(curves, arms=shown, x="images_seen")
    report.figure("learning_curves", figure, "Training loss and validation accuracy by the images seen.")

    report.section(f"Wrong labels, {size} a class", "Accuracy with right labels minus accuracy with wrong ones.")
    drops = {
        method: study.compare(
            results, name(method, size), name(method, size, settings.label_noise), "test_accuracy", SEEN
        )
        for method in NOISY
    }
    report.figure("drop_by_noise", study.plots.paired_differences(drops), "Drop of test accuracy by wrong labels.")
    told = ", ".join(f"{c.difference.scaled(100).format(1)} points for *{method}*" for method, c in drops.items())
    report.conclude(f"{100 * settings.label_noise:g} % wrong labels cost {told}.")
    _criteria(report, sizes)


def _criteria(report: study.Report, sizes: list[int]) -> None:
    """10a: large gap that closes; 10b: scratch needs longer; 10c: wrong labels hurt fine-tuning less."""
    results, noise, size = report.results, report.settings.label_noise, focus(report.settings)
    bench = f"On {report.settings.data} with {report.settings.backbone}; the published bench is CIFAR-10."
    gap = study.compare(results, name(FINE, size), name(LONG, size), "test_accuracy").difference
    by_size = "; ".join(
        f"{study.compare(results, name(FINE, n), name(LONG, n), 'test_accuracy').difference.scaled(100).format(1)} "
        f"points at {n}"
        for n in sizes
    )
    slope = study.gain_trend(results, {n: (name(FINE, n), name(LONG, n)) for n in sizes}, "test_accuracy")
    even = [
        f"{study.compare(results, name(a, size), name(b, size), 'test_accuracy').difference.scaled(100).format(1)} "
        f"({a} - {b})"
        for a, b in ((FINE, SHORT), (FINE_LONG, LONG))
    ]
    wait = study.contrast(
        results, (name(FINE, size), name(SHORT, size)), (name(FINE_LONG, size), name(LONG, size)), "test_accuracy"
    ).difference
    drop = study.contrast(
        results,
        (name(LONG, size), name(LONG, size, noise)),
        (name(FINE, size), name(FINE, size, noise)),
        "test_accuracy",
        SEEN,
    ).difference
    rows = [
        ("10a", "the gap pretrained - scratch is large with little data", "Kornblith et al. 2019",
         "large on small sets, small on large ones", f"gap to {LONG} at {size} a class at least 15 points", gap, 15.0,
         "above", f"{bench} Scratch has 5x the steps; with equal steps the gap is {' and '.join(even)} points."),
        ("10a", "the gap falls with more data", "Kornblith et al. 2019", "large on small sets, small on large ones",
         f"slope of the gap to {LONG} in log10 n below 0", slope, 0.0, "below",
         f"{bench} Gap by images a class: {by_size}."),
        ("10b", "scratch needs longer", "He et al. 2018", "scratch catches up with a schedule several times as long",
         f"gap at 1x steps - gap at 5x steps above 0, both sides 5x, {size} a class", wait, 0.0, "above",
         f"{bench} Detection in the paper."),
        ("10c", "pretraining makes training robust to label noise", "Hendrycks et al. 2019",
         "fine-tuning beats scratch under label noise on CIFAR-10 and CIFAR-100",
         f"drop of {LONG} - drop of {FINE} above 0 at {size} a class", drop, 0.0, "above",
         f"{bench} Wrong labels: {100 * noise:g} %; never the right class again."),
    ]  # fmt: skip
    for finding, claim, source, published, rule, effect, bound, direction, note in rows:
        points = effect.scaled(100)
        report.criterion(
            study.Criterion(
                finding=finding,
                claim=claim,
                source=source,
                published=published,
                rule=rule,
                effect=points,
                unit="points a tenfold n" if "slope" in rule else "points",
                verdict=study.statistics.decide(points, bound, direction),
                note=note,
            )
        )


# %% The study
STUDY = study.Study(
    name="transfer_vs_scratch",
    question="How much does a pretrained network gain over random weights, and when does the gain vanish?",
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
