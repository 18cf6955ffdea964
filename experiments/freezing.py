"""How deep should a pretrained network be frozen?

Question   How do accuracy, time, memory and trainable parameters change with the number of frozen stages, which depths
           cannot be told apart, and do gradual unfreezing or layer-wise learning rates change the answer?
Command    python experiments/freezing.py                 EfficientNet-Lite0 on ELPV, laptop, under 8 minutes
           python experiments/freezing.py --config configs/freezing_cifar10.yaml --gpus 1
Expected   The deeper the frozen part, the cheaper the step: [1 + 2 (1 - f)] / 3 of a full one with the share f of the
           forward FLOPs frozen. Frozen features lose accuracy from the middle layers on (Yosinski et al. 2014).
"""

# %%
from __future__ import annotations

from functools import cache

import numpy as np

import tl_lightning as tl
from tl_lightning import study
from tl_lightning.study import Arm, Trial

BACKGROUND = """
A pretrained network is a stack of stages. **Freezing** a stage means that nothing in it changes while the rest trains:
no gradient, no weight decay, BatchNorm and Dropout as in evaluation. With every stage but the head frozen this is a
**linear probe**; with none frozen it is **fine-tuning**. In between lies a trade-off: early layers hold general
features (edges, textures) that hardly need to change, late ones are specific to the source classes.

**How to read the accuracy figure**: from left to right more stages are frozen; the dot is the mean over seeds, the bar
its 95 % interval, the small dots are the single seeds. Two depths whose paired difference has an interval that holds 0
cannot be told apart with this many seeds; that is not the same as being equal.

*Progressive* arms begin as a linear probe and thaw stage by stage (Howard & Ruder 2018, for text). *Layer-wise rates*
give each stage 0.7 times the learning rate of the one above it.

Sources: Yosinski et al. 2014, "How transferable are features in deep neural networks?"; Howard & Ruder 2018, "Universal
language model fine-tuning"; Kornblith et al. 2019, "Do better ImageNet models transfer better?".
"""

DEPTHS = 5  # depths from nothing frozen to the head alone, evenly spaced over the backbone's stages
LR_DECAY = 0.7
ALL, HEAD = "nothing frozen", "head only"


# %% The grid
@cache
def stages(backbone: str) -> tl.Stages:
    """Return the stages of the backbone, whatever its weights."""
    return tl.Stages(tl.create_backbone(backbone, "none", num_classes=2))


def depths(backbone: str) -> list[int]:
    """Return the numbers of frozen stages to try, from none to all but the head."""
    deepest = len(stages(backbone)) - 1
    return sorted({round(depth) for depth in np.linspace(0, deepest, DEPTHS)})


def schedule(backbone: str, epochs: int) -> dict[int, int]:
    """Return the frozen depth by epoch: at first the head alone trains, from half of the epochs on everything."""
    steps = depths(backbone)[::-1]
    last = max(1, epochs // 2)
    return {epoch: steps[round(epoch * (len(steps) - 1) / last)] for epoch in range(last + 1)}


def arms(settings: study.Settings) -> list[Arm]:
    """Return the arms: each depth, and progressive unfreezing, with and without layer-wise rates."""
    names = stages(settings.backbone).names
    grid = []
    for depth in depths(settings.backbone):
        name = ALL if depth == 0 else HEAD if depth == len(names) - 1 else f"up to {names[depth - 1]}"
        grid.append(Arm(name, {"frozen_stages": depth, "progressive": False, "lr_decay": 1.0}))
    grid.append(Arm("progressive", {"frozen_stages": 0, "progressive": True, "lr_decay": 1.0}))
    for arm in (grid[0], grid[-1]):
        grid.append(Arm(f"{arm.name} + layer-wise rates", {**arm.factors, "lr_decay": LR_DECAY}))
    return grid


def freezing(arm: Arm, settings: study.Settings) -> int | dict[int, int]:
    """Return what an arm freezes: a fixed depth or a schedule."""
    return schedule(settings.backbone, settings.epochs) if arm.factors["progressive"] else arm.factors["frozen_stages"]


def decay(arm: Arm) -> float | None:
    """Return the factor of the learning rate from stage to stage, None for equal rates."""
    return arm.factors["lr_decay"] if arm.factors["lr_decay"] < 1 else None


def plan(arm: Arm, settings: study.Settings) -> object:
    """Say what an arm will do, epoch by epoch."""
    return study.freezing_plan(settings, freezing(arm, settings), decay(arm))


# %% One trial
def run(trial: Trial, settings: study.Settings) -> dict[str, object]:
    """Train and test one arm at one seed; for a fixed depth measure the cost of a step beside it."""
    record = study.train_and_test(trial, settings, freezing=freezing(trial.arm, settings), lr_decay=decay(trial.arm))
    if trial.arm.factors["frozen_stages"] > 0:
        record |= study.measure_step_cost(trial, settings, trial.arm.factors["frozen_stages"])
    return record


# %% What is reported
def report(report: study.Report) -> None:
    """Tables, figures and criteria."""
    results, arms = report.results, report.arms
    by_depth = results[~results["progressive"] & (results["lr_decay"] == 1)]
    differences = study.compare_all(results, ALL, "test_accuracy")
    tied = [arm for arm, c in differences.items() if c.verdict == "no difference shown"]
    report.conclude(
        f"Against *{ALL}* ({results.loc[results['arm'] == ALL, 'test_accuracy'].mean():.3f} test accuracy), no "
        f"difference is shown for: {', '.join(tied) or 'no other arm'}."
    )
    for arm, comparison in differences.items():
        if arm not in tied:
            report.conclude(f"*{arm}* is {comparison.verdict}: {comparison.difference.format()} in test accuracy.")

    report.section("Accuracy and cost by depth")
    report.table(study.arm_table(results, arms))
    order = [arm for arm in arms if arm in set(by_depth["arm"])]
    figure = study.plots.accuracy_against_factor(by_depth, order=order, metric="test_accuracy")
    report.figure("accuracy_by_depth", figure, "Test accuracy against the number of frozen stages.")
    figure = study.plots.pareto(results, cost="train_seconds", value="test_accuracy")
    report.figure("accuracy_by_time", figure, "Test accuracy against the seconds of training of the selected model.")
    figure = study.plots.learning_curves(report.curves, arms=[*order, "progressive"])
    report.figure("learning_curves", figure, "Training loss and validation accuracy by epoch (mean and interval).")

    report.section("Which differences are real", study.HOW_TO_READ_DIFFERENCES)
    report.table(study.comparison_table(differences))
    report.figure("differences", study.plots.paired_differences(differences), f"Paired difference to {ALL}.")
    _criteria(report, order)


def _criteria(report: study.Report, order: list[str]) -> None:
    """8a: accuracy falls when more than the lower half is frozen; 6b: the cost model of a step."""
    middle = order[len(order) // 2]
    fall = study.compare(report.results, HEAD, middle, "test_accuracy").difference
    report.criterion(
        study.Criterion(
            finding="8a",
            claim="frozen features lose accuracy from the middle layers on",
            source="Yosinski et al. 2014",
            published="62.7 62.3 61.8 59.9 57.8 58.0 54.2 % for frozen layers 1 to 7",
            rule=f"accuracy of {HEAD!r} - {middle!r} below 0",
            effect=fall.scaled(100),
            unit="points",
            verdict=study.statistics.decide(fall, 0.0, "below"),
            note="Yosinski trains what lies above from random weights; here it stays pretrained and is fine-tuned.",
        )
    )
    costs = report.results.dropna(subset=["step_time_ratio"])
    if len(costs):
        ratio = costs["step_time_ratio"] / costs["step_flops_ratio"]
        by_seed = study.statistics.mean_interval(ratio.groupby(costs["seed"]).mean())
        report.criterion(
            study.Criterion(
                finding="6b",
                claim="a step with the share f of the FLOPs frozen costs [1 + 2 (1 - f)] / 3 of a full one",
                source="cost model",
                published="measured / model = 1",
                rule="mean of measured / model over the depths within 0.75 and 1.25",
                effect=by_seed,
                unit="measured / model",
                verdict=study.statistics.decide(by_seed, (0.75, 1.25), "within"),
            )
        )


# %% The study
STUDY = study.Study(
    name="freezing",
    question="How deep should a pretrained network be frozen?",
    background=BACKGROUND,
    arms=arms,
    run=run,
    report=report,
    check=lambda settings: study.check_training(settings),
    plan=plan,
)

# %%
if __name__ == "__main__":
    study.main(STUDY)
