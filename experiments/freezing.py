"""How deep should a pretrained network be frozen?

Question   How do accuracy, time, memory and trainable parameters change with the number of frozen stages, which depths
           cannot be told apart, do gradual unfreezing or layer-wise learning rates change the answer, where does a
           network stop being general, and is it ever better to train the first layers than the last?
Command    python experiments/freezing.py                 EfficientNet-Lite0 on ELPV and an own network on digits,
                                                          laptop, 10 minutes
           python experiments/freezing.py --config configs/freezing_cifar10.yaml --gpus 1
Expected   The deeper the frozen part, the cheaper the step: [1 + 2 (1 - f)] / 3 of a full one with the share f of the
           forward FLOPs frozen. Kept layers lose accuracy on other classes from the middle on (Yosinski et al. 2014).
           Where the input alone is corrupted, the first block is enough (Lee et al. 2023).
"""

# %%
from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

import tl_lightning as tl
from tl_lightning import study
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.study import Arm, Trial
from tl_lightning.study.freezing_criteria import first_block_is_enough, kept_layers_are_specific
from tl_lightning.study.paired_gains import gain_interval
from tl_lightning.study.speed import cost_model_criterion

BACKGROUND = """
A pretrained network is a stack of stages. **Freezing** a stage means that nothing in it changes while the rest trains:
no gradient, no weight decay, BatchNorm and Dropout as in evaluation. With every stage but the head frozen this is a
**linear probe**; with none frozen it is **fine-tuning**. In between lies a trade-off: early layers hold general
features (edges, textures) that hardly need to change, late ones are specific to the source classes. The study has
four parts.

1. *How deep?* One pretrained network on the target, frozen to several depths. *Progressive* arms begin as a linear
   probe and thaw stage by stage (Howard & Ruder 2018, for text). *Layer-wise rates* give each stage 0.7 times the
   learning rate of the one above it.
2. *Where does a network stop being general?* An own network is trained on some classes of a set. Its first stages are
   kept and frozen, all behind them is trained **from random weights** on other classes. The control keeps the first
   stages of a network trained on those *same* classes: what both lose is the cost of cutting a network in two, what
   only the first loses is that its stages are specific to its own classes.
3. *First or last?* A network trained on clean images meets corrupted ones of the same classes. Only the input differs,
   so it may be enough to train the first stages and leave all behind them alone (*surgical fine-tuning*, Lee et al.
   2023), while a new head sees features that are spoilt already.
4. *What does each depth know?* Nothing in the network trains: a linear head reads the features behind each stage,
   averaged over the image. Where the line stops rising, the stages behind could be cut off.

**How to read the accuracy figures**: from left to right more stages are frozen; the dot is the mean over seeds, the bar
its 95 % interval, the small dots are the single seeds. Two depths whose paired difference has an interval that holds 0
cannot be told apart with this many seeds; that is not the same as being equal.

Sources: Yosinski et al. 2014, "How transferable are features in deep neural networks?"; Howard & Ruder 2018, "Universal
language model fine-tuning"; Kornblith et al. 2019, "Do better ImageNet models transfer better?"; Lee et al. 2023,
"Surgical fine-tuning improves adaptation to distribution shifts".
"""

LR_DECAY = 0.7
DEPTH, CLASSES, INPUT, HEADS = "depth", "other classes", "corrupted input", "linear heads"  # the parts
PARTS = (DEPTH, CLASSES, INPUT, HEADS)
ALL, HEAD, FIRST = "nothing frozen", "head only", "first block only"
OTHER, SAME = "other classes", "same classes"


@dataclass
class Settings(study.Settings):
    """Settings of this study.

    Args:
        parts: What to run of: depth, other classes, corrupted input, linear heads.
        depths: Depths of the first part, from nothing frozen to the head alone, evenly spaced over the stages.
        own_data: Image set of the second and third part.
        own_data_dir: Its folder.
        own_backbone: Network of these parts, trained from random weights.
        own_image_size: Side in pixels of their images.
        own_source: Classes that the network of the second part comes from.
        own_target: Classes that it is taken to.
        own_epochs: Epochs of pretraining.
        own_target_epochs: Epochs on the target of the second and third part.
        own_samples: Training images of each target class of the second part.
        own_learning_rates: Learning rates of these parts.
        own_corruption: Corruption of the third part.
        own_severity: Its severity, 1 to 5.
        own_corrupted: Corrupted training images of each class.
    """

    parts: list[str] = field(default_factory=lambda: list(PARTS))
    depths: int = 5
    own_data: str = "digits"
    own_data_dir: str | None = None
    own_backbone: str = "shufflenet_v2_x1_0"
    own_image_size: int = 32
    own_source: list[str] = field(default_factory=lambda: ["0", "1", "2", "3", "4"])
    own_target: list[str] = field(default_factory=lambda: ["5", "6", "7", "8", "9"])
    own_epochs: int = 12
    own_target_epochs: int = 12
    own_samples: int | None = None
    own_learning_rates: float | list[float] = 3e-3
    own_corruption: str = "gaussian_noise"
    own_severity: int = 5
    own_corrupted: int | None = None


# %% The grid
@cache
def stages(backbone: str) -> tl.Stages:
    """Return the stages of the backbone, whatever its weights."""
    return tl.Stages(tl.create_backbone(backbone, "none", num_classes=2))


def depths(settings: Settings) -> list[int]:
    """Return the numbers of frozen stages to try, from none to all but the head."""
    deepest = len(stages(settings.backbone)) - 1
    return sorted({round(depth) for depth in np.linspace(0, deepest, settings.depths)})


def schedule(settings: Settings) -> dict[int, int]:
    """Return the frozen depth by epoch: at first the head alone trains, from half of the epochs on everything."""
    steps = depths(settings)[::-1]
    last = max(1, settings.epochs // 2)
    return {epoch: steps[round(epoch * (len(steps) - 1) / last)] for epoch in range(last + 1)}


def arms(settings: Settings) -> list[Arm]:
    """Return the arms of all parts."""
    names, own = stages(settings.backbone).names, stages(settings.own_backbone).names
    grid = []
    for depth in depths(settings):
        name = ALL if depth == 0 else HEAD if depth == len(names) - 1 else f"up to {names[depth - 1]}"
        grid.append(Arm(name, {"part": DEPTH, "frozen_stages": depth, "progressive": False, "lr_decay": 1.0}))
    grid.append(Arm("progressive", {"part": DEPTH, "frozen_stages": 0, "progressive": True, "lr_decay": 1.0}))
    for arm in (grid[0], grid[-1]):
        grid.append(Arm(f"{arm.name} + layer-wise rates", {**arm.factors, "lr_decay": LR_DECAY}))
    for depth in range(1, len(own)):
        for source in (OTHER, SAME):
            factors = {"part": CLASSES, "frozen_stages": depth, "source": source}
            grid.append(Arm(kept(source, depth, settings), factors))
    grid += [Arm(corrupted(trained), {"part": INPUT, "trained": trained}) for trained in (ALL, FIRST, HEAD)]
    grid += [
        Arm(f"linear head after {names[d - 1]}", {"part": HEADS, "frozen_stages": d}) for d in range(1, len(names))
    ]
    return [arm for arm in grid if arm.factors["part"] in settings.parts]


def kept(source: str, depth: int, settings: Settings) -> str:
    """Return the name of an arm of the second part."""
    return f"{source}, up to {stages(settings.own_backbone).names[depth - 1]}"


def corrupted(trained: str) -> str:
    """Return the name of an arm of the third part."""
    return f"corrupted: {trained}"


def freezing(arm: Arm, settings: Settings) -> int | dict[int, int]:
    """Return what an arm of the first part freezes: a fixed depth or a schedule."""
    return schedule(settings) if arm.factors["progressive"] else arm.factors["frozen_stages"]


def decay(arm: Arm) -> float | None:
    """Return the factor of the learning rate from stage to stage, None for equal rates."""
    return arm.factors["lr_decay"] if arm.factors["lr_decay"] < 1 else None


def plan(arm: Arm, settings: Settings) -> object:
    """Say what an arm will do, epoch by epoch."""
    if arm.factors["part"] == DEPTH:
        return study.freezing_plan(settings, freezing(arm, settings), decay(arm))
    if arm.factors["part"] == HEADS:
        return f"a linear head on the features of {settings.backbone}, in which nothing trains"
    return f"{settings.own_backbone} on {settings.own_data}, {settings.own_target_epochs} epochs"


def own(settings: Settings) -> Settings:
    """Return the settings of the second and third part."""
    return replace(
        settings,
        data=settings.own_data,
        data_dir=settings.own_data_dir,
        backbone=settings.own_backbone,
        weights="none",
        image_size=settings.own_image_size,
        epochs=settings.own_target_epochs,
        learning_rates=settings.own_learning_rates,
        samples_per_class=None,
    )


def check(settings: Settings) -> None:
    """Refuse what no trial could run."""
    study.check_training(settings)
    study.check_training(own(settings))
    twice = sorted(set(settings.own_source) & set(settings.own_target))
    if twice:
        raise UserError(f"--own-source and --own-target must not share classes, but both name {', '.join(twice)}")
    for part in settings.parts:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
    if not settings.parts:
        raise UserError(f"--parts names none of: {', '.join(PARTS)}")


# %% One trial
def run(trial: Trial, settings: Settings) -> dict[str, Any]:
    """Train and test one arm at one seed."""
    part = trial.arm.factors["part"]
    if part == HEADS:
        return study.head_at_depth(trial, settings, trial.arm.factors["frozen_stages"])
    return {DEPTH: at_depth, CLASSES: on_kept_stages, INPUT: on_corrupted_input}[part](trial, settings)


def at_depth(trial: Trial, settings: Settings) -> dict[str, Any]:
    """Fine-tune the pretrained network; for a fixed depth measure the cost of a step beside it."""
    record = study.train_and_test(trial, settings, freezing=freezing(trial.arm, settings), lr_decay=decay(trial.arm))
    if trial.arm.factors["frozen_stages"] > 0:
        record |= study.measure_step_cost(trial, settings, trial.arm.factors["frozen_stages"])
    return record


def columns(mine: Settings) -> dict[str, Any]:
    """Return what a record says of a network that was trained here."""
    return {"data": mine.data, "weights": f"own, {mine.data}", "image_size": mine.image_size}


def on_kept_stages(trial: Trial, settings: Settings) -> dict[str, Any]:
    """Keep the first stages of an own network, train what lies above from random weights."""
    mine, depth, source = own(settings), trial.arm.factors["frozen_stages"], trial.arm.factors["source"]
    target = {"classes": tuple(settings.own_target), "samples_per_class": settings.own_samples}
    path = study.pretrained_on(
        mine,
        settings.own_target if source == SAME else settings.own_source,
        trial.seed,
        folder=study.sources(trial),
        epochs=settings.own_epochs,
        samples_per_class=settings.own_samples,
    )
    start = study.kept_stages(trial, mine, path, depth, target)
    record = study.train_and_test(trial, mine, freezing=depth, start=start, data_options=target)
    return {**record, **study.source_columns(path), **columns(mine)}


def on_corrupted_input(trial: Trial, settings: Settings) -> dict[str, Any]:
    """Adapt an own network, trained on clean images, to corrupted ones."""
    mine, trained = own(settings), trial.arm.factors["trained"]
    path = study.pretrained_on(mine, None, trial.seed, folder=study.sources(trial), epochs=settings.own_epochs)
    shift = {
        "corruption": settings.own_corruption,
        "severity": settings.own_severity,
        "corrupt_parts": ("train", "val", "test"),
        "samples_per_class": settings.own_corrupted,
    }
    classes = study.data_module(mine, trial.seed, **shift).num_classes
    record = study.train_and_test(
        trial,
        mine,
        freezing="head" if trained == HEAD else 0,
        freeze_from=2 if trained == FIRST else None,
        start=study.whole_network(trial, mine, path, classes),
        data_options=shift,
    )
    return {**record, **study.source_columns(path), **columns(mine)}


# %% What is reported
def report(report: study.Report) -> None:
    """Tables, figures and criteria of the parts that were run."""
    parts = {part: report.results[report.results["part"] == part] for part in PARTS}
    names = {part: [arm for arm in report.arms if arm in set(rows["arm"])] for part, rows in parts.items()}
    if len(parts[DEPTH]):
        report_depths(report, parts[DEPTH], names[DEPTH])
    if len(parts[CLASSES]):
        report_classes(report, parts[CLASSES], names[CLASSES])
    if len(parts[INPUT]):
        report_input(report, parts[INPUT], names[INPUT])
    if len(parts[HEADS]):
        report_heads(report, parts[HEADS], names[HEADS])


def report_depths(report: study.Report, results: Any, arms: list[str]) -> None:
    """Accuracy and cost by depth, which differences are real, the cost model."""
    by_depth = results[(results["progressive"] == False) & (results["lr_decay"] == 1)]  # noqa: E712
    differences = study.compare_all(results, ALL, "test_accuracy")
    tied = [arm for arm, c in differences.items() if c.verdict == "no difference shown"]
    report.conclude(
        f"Against *{ALL}* ({results.loc[results['arm'] == ALL, 'test_accuracy'].mean():.3f} test accuracy), no "
        f"difference is shown for: {'; '.join(f'*{arm}*' for arm in tied) or 'no other arm'}."
    )
    for arm, comparison in differences.items():
        if arm not in tied:
            report.conclude(f"*{arm}* is {comparison.verdict}: {comparison.difference.format()} in test accuracy.")

    report.section("1. Accuracy and cost by depth")
    report.table(study.arm_table(results, arms))
    order = [arm for arm in arms if arm in set(by_depth["arm"])]
    figure = study.plots.accuracy_against_factor(
        by_depth, order=order, metric="test_accuracy", chance=study.one_answer(by_depth)
    )
    report.figure("accuracy_by_depth", figure, "Test accuracy against the number of frozen stages.")
    figure = study.plots.pareto(results, cost="train_seconds", value="test_accuracy", chance=study.one_answer(results))
    report.figure("accuracy_by_time", figure, "Test accuracy against the seconds of training of the selected model.")
    curves = report.curves[report.curves["arm"].isin(arms)]
    figure = study.plots.learning_curves(curves, arms=[*order, "progressive"])
    report.figure("learning_curves", figure, "Training loss and validation accuracy by epoch, the mean over seeds.")

    report.section("Which differences are real", study.HOW_TO_READ_DIFFERENCES)
    report.table(study.comparison_table(differences))
    report.figure("differences", study.plots.paired_differences(differences), f"Paired difference to {ALL}.")
    cost = cost_model_criterion(results)
    if cost is not None:
        report.criterion(cost)


def report_classes(report: study.Report, results: Any, arms: list[str]) -> None:
    """Where a network stops being general: 8a."""
    settings = report.settings
    names = stages(settings.own_backbone).names
    top, middle = len(names) - 1, max(1, len(names) // 2)
    gap = gain_interval(results, (kept(OTHER, top, settings), kept(SAME, top, settings)), "test_accuracy")
    fall = gain_interval(results, (kept(OTHER, top, settings), kept(OTHER, middle, settings)), "test_accuracy")
    report.section(
        "2. Where a network stops being general",
        f"{settings.own_backbone} from classes {', '.join(settings.own_source)} to {', '.join(settings.own_target)} of "
        f"{settings.own_data}; stages up to the one named are kept and frozen, all behind them begin at random.",
    )
    figure = study.plots.metric_against_number(
        results, "frozen_stages", "source", order=[OTHER, SAME], number_text="Stages kept and frozen", log=False
    )
    report.figure("kept_stages", figure, "Test accuracy against the number of stages kept from other or same classes.")
    report.table(study.arm_table(results, arms))
    report.conclude(
        f"With all stages of *{OTHER}* kept, the own network is {gap.scaled(100).format(1)} points from one of the "
        f"{SAME}, and {fall.scaled(100).format(1)} points from keeping up to {names[middle - 1]}."
    )
    report.criterion(kept_layers_are_specific(gap, fall))


def report_input(report: study.Report, results: Any, arms: list[str]) -> None:
    """First or last: 8c."""
    settings = report.settings
    to_all, to_head = (
        gain_interval(results, (corrupted(FIRST), corrupted(other)), "test_accuracy") for other in (ALL, HEAD)
    )
    report.section(
        "3. First or last, where the input is corrupted",
        f"{settings.own_backbone}, trained on clean {settings.own_data}, adapted to {settings.own_corruption} of "
        f"severity {settings.own_severity}. The first block is what lies before the third stage.",
    )
    report.table(study.arm_table(results, arms))
    figure = study.plots.accuracy_against_factor(results, order=arms, metric="test_accuracy", apart=arms)
    report.figure("corrupted_input", figure, "Test accuracy on corrupted images by what was trained.")
    report.conclude(
        f"On corrupted images, training the *{FIRST}* differs from training everything by "
        f"{to_all.scaled(100).format(1)} points and from the *{HEAD}* by {to_head.scaled(100).format(1)}."
    )
    report.criterion(first_block_is_enough(to_all, to_head))


def report_heads(report: study.Report, results: Any, arms: list[str]) -> None:
    """What each depth knows."""
    best = results.groupby("arm")["test_accuracy"].mean().idxmax()
    last = results.loc[results["frozen_stages"].astype(int).idxmax(), "arm"]
    gap = gain_interval(results, (best, last), "test_accuracy")
    report.section(
        "4. What each depth knows",
        f"A linear head on the features of {report.settings.backbone} behind each stage, averaged over the image, "
        "trained at learning rates of which validation selects one.",
    )
    figure = study.plots.accuracy_against_factor(
        results.astype({"frozen_stages": int}),
        metric="test_accuracy",
        factor="frozen_stages",
        factor_text="Stages before the linear head",
        chance=study.one_answer(report.results[report.results["part"] == DEPTH]),
    )
    report.figure("linear_heads", figure, "Test accuracy of a linear head by the stages before it.")
    report.table(study.arm_table(results, arms))
    report.conclude(
        f"Of all linear heads the *{best.removeprefix('linear ')}* has the highest mean, {gap.scaled(100).format(1)} "
        f"points from the *{last.removeprefix('linear ')}*; the best of many flatters itself."
    )


# %% The study
STUDY = study.Study(
    name="freezing",
    question="How deep should a pretrained network be frozen?",
    background=BACKGROUND,
    settings=Settings,
    arms=arms,
    run=run,
    report=report,
    check=check,
    plan=plan,
)

# %%
if __name__ == "__main__":
    study.main(STUDY)
