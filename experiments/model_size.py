"""How large a pretrained network is worth its cost?

Question   How do accuracy, training time, operations (a proxy of energy), memory, latency and throughput change with
           the size of the network, fine-tuned and as a linear probe, and which networks no other beats in both?
Command    python experiments/model_size.py               EfficientNet-Lite0/1/2 on ELPV, laptop, 6 minutes
           python experiments/model_size.py --config configs/model_size_cifar10.yaml --gpus 1
Expected   Better ImageNet models transfer better (Kornblith et al. 2019), though not on real-world sets (Fang et al.
           2023). Time follows neither parameters nor operations: MobileNetV2 has 0.30 GMACs and 3.5 M parameters,
           ResNet-18 1.81 and 11.7 M (Sandler et al. 2018, He et al. 2016).
"""

# %%
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from tl_lightning import study
from tl_lightning.study import Arm, Trial, model_costs

BACKGROUND = """
A larger network sees more in an image, and costs more: to train, to keep in memory, and each time it is used. Three
numbers stand for "size", and they do not agree. **Parameters** are what has to be stored. **Multiply-adds** (MACs;
GMACs are 10^9 of them, one is two FLOPs) are the arithmetic of one image. **Seconds** are what you wait: memory
traffic counts in them too, and depthwise convolutions (MobileNet, EfficientNet) do little arithmetic for each byte they
move. **Latency** is the time of one image alone, **throughput** the images a second in batches of 32.

The **energy proxy** is the number of floating point operations of the whole training: forward and backward of every
step, for a linear probe one forward pass over the training images in all (its features are computed once) and then
the head. Operations are not joules: the same operation costs differently on another chip, and memory traffic is left
out; passes over the validation images are left out in both.

**How to read the Pareto figures**: up is better, left is cheaper. A ringed arm is beaten by no other in
both accuracy and cost; for one below it there is a choice that is cheaper and at least as good. Whether two arms differ
at all is said by the paired differences, not by the figure.

Sources: Kornblith et al. 2019, "Do better ImageNet models transfer better?" (correlation 0.96 to 0.99 on natural
images); Fang et al. 2023, "Does progress on ImageNet transfer to real-world datasets?"; Sandler et al. 2018,
"MobileNetV2"; He et al. 2016, "Deep residual learning"; Strubell et al. 2019, "Energy and policy considerations".
"""

METHODS: dict[str, int | str] = {"fine-tuned": 0, "linear probe": "head"}  # what is frozen
COST_ONLY = "cost only"
SMALL, LARGE = "mobilenet_v2", "resnet18"
NATURAL, MARGIN = ("cifar10", "cifar100", "stl10"), 0.02  # bench A of 3a; on others the margin of equivalence


@dataclass
class Settings(study.Settings):
    """Settings of the study of model sizes.

    Args:
        backbones: Networks that are trained from the weights, in place of the one backbone.
        cost_backbones: Networks whose costs are measured with random weights, and which are not trained.
        latency_repeats: Calls of which the median is the latency.
    """

    backbones: list[str] = field(default_factory=lambda: ["efficientnet_lite0"])
    cost_backbones: list[str] = field(default_factory=list)
    latency_repeats: int = 20


# %% The grid
def arms(settings: Settings) -> list[Arm]:
    """Return every network with every method, then those whose costs alone are measured."""
    trained = [(network, method) for network in settings.backbones for method in METHODS]
    grid = [*trained, *((network, COST_ONLY) for network in settings.cost_backbones)]
    return [Arm(f"{network}, {method}", {"network": network, "method": method}) for network, method in grid]


def check(settings: Settings) -> None:
    """Refuse, before anything is trained, a network that cannot be had."""
    model_costs.check_networks(settings, settings.backbones, settings.cost_backbones, settings.latency_repeats)
    study.check_training(replace(settings, backbone=settings.backbones[0]))


# %% One trial
def run(trial: Trial, settings: Settings) -> dict[str, Any]:
    """Train and test one network, or measure the costs of one with random weights."""
    network, method = str(trial.arm.factors["network"]), str(trial.arm.factors["method"])
    if method == COST_ONLY:
        return model_costs.untrained_costs(trial, settings, network, settings.latency_repeats)
    study.forget_activations()  # each seed pays for its own features
    record = study.train_and_test(
        trial,
        settings,
        backbone=network,
        freezing=METHODS[method],
        inspect=lambda module, images: model_costs.costs_in_use(module, settings, settings.latency_repeats),
    )
    cached = method == "linear probe" and settings.cache_size > 0  # one pass over the images in place of one an epoch
    passes = record["train_images"] if cached else 0
    record |= {} if method == "linear probe" else model_costs.step_costs(trial, settings, network)
    return {**record, "training_flops": record["train_flops"] + passes * record["inference_flops"]}


# %% What is reported
def report(report: study.Report) -> None:
    """Tables, figures and criteria."""
    trained = report.results[report.results["method"] != COST_ONLY]
    trained = trained.assign(training_gflops=trained["training_flops"] / 1e9) if len(trained) else trained
    if len(trained):
        _accuracy(report, trained)

    report.section("What a network costs", model_costs.HOW_TO_READ)
    report.table(model_costs.cost_table(report.results, report.arms))
    whole = report.results[report.results["method"] != "linear probe"].drop_duplicates(["network", "seed"])
    costs = ("latency_ms", "throughput", "training_step_ms", "step_memory_mb")
    figure = study.plots.cost_bars(whole.assign(arm=whole["network"]), costs=costs)
    report.figure("costs", figure, "Costs of each network: in use, and of training all of it.")
    if len(trained):
        _finding_3a(report, trained)
    _finding_3b(report)


def _accuracy(report: study.Report, trained: pd.DataFrame) -> None:
    """Say and show what size buys, and at which cost."""
    names = [arm for arm in report.arms if arm in set(trained["arm"])]
    small, large = model_costs.smallest_and_largest(trained)
    pairs = {f"{large} - {small}, {m}": (f"{large}, {m}", f"{small}, {m}") for m in METHODS} if small != large else {}
    pairs = {name: pair for name, pair in pairs.items() if set(pair) <= set(names)}
    differences = {name: study.compare(trained, *pair, "test_accuracy") for name, pair in pairs.items()}
    for name, pair in pairs.items():
        times, operations, latency = (
            model_costs.mean_ratio(trained, *pair, cost) for cost in ("train_seconds", "training_flops", "latency_ms")
        )
        report.conclude(
            f"*{name}*: {differences[name].difference.scaled(100).format(1)} points of test accuracy "
            f"({differences[name].verdict}), for {times:.1f} times the training time, {operations:.1f} times its "
            f"operations and {latency:.1f} times the latency of an image."
        )
    means = trained.groupby("arm", sort=False)[["train_seconds", "test_accuracy"]].mean()
    front = study.plots.pareto_front(means["train_seconds"].to_numpy(), means["test_accuracy"].to_numpy())
    report.conclude(f"By the means, no other arm is both quicker to train and better: {'; '.join(means.index[front])}.")

    report.section("Accuracy against size", "More multiply-adds to the right; each line is a way of training.")
    report.table(study.arm_table(trained, names))
    figure = study.plots.metric_against_number(
        trained, "gmacs", "method", order=list(METHODS), chance=study.one_answer(trained)
    )
    report.figure("accuracy_by_size", figure, "Test accuracy against the multiply-adds of an image.")
    if differences:
        report.table(study.comparison_table(differences))

    report.section("Accuracy against cost", "Ringed: by the means no other arm is both cheaper and better.")
    for name, cost, text in (
        ("pareto_latency", "latency_ms", "the latency of one image"),
        ("pareto_time", "train_seconds", "the seconds of training of the selected model"),
        ("pareto_energy", "training_gflops", "the operations of the whole training, the proxy of energy"),
    ):
        report.figure(name, study.plots.pareto(trained, cost=cost, order=names), f"Test accuracy against {text}.")


def _finding_3a(report: study.Report, trained: pd.DataFrame) -> None:
    """3a: better ImageNet models transfer better to natural images, not to real-world sets."""
    networks = model_costs.smallest_and_largest(trained)
    known = [model_costs.imagenet_accuracy(network, report.settings.weights) for network in networks]
    if None not in known and known[0] > known[1]:  # type: ignore[operator]
        networks = networks[::-1]  # the larger one is the worse one on ImageNet
    small, large = (f"{network}, fine-tuned" for network in networks)
    if small == large or not {small, large} <= set(trained["arm"]):
        return
    natural, bounds = report.settings.data in NATURAL, (-MARGIN, MARGIN)
    if natural:
        effect = study.compare(trained, large, small, "test_accuracy").difference
        verdict = study.statistics.decide(effect, 0.0, "above")
    else:
        arms = (study.by_seed(trained, arm, "test_accuracy") for arm in (large, small))
        effect = study.statistics.equivalence(*study.statistics.shared(*arms), MARGIN).difference
        verdict = study.statistics.decide(effect, bounds, "within")
    rule = "difference above 0 (95 % interval)" if natural else "|difference| below 2 points (two one-sided tests)"
    report.criterion(
        study.Criterion(
            finding="3a",
            claim=f"a better ImageNet model {'transfers better' if natural else 'is no better on a real-world set'}",
            source="Kornblith et al. 2019" if natural else "Fang et al. 2023",
            published="correlation 0.96 to 0.99" if natural else "no gain on real-world sets",
            rule=f"{large} - {small}: {rule}",
            effect=effect.scaled(100),
            unit="points",
            verdict=verdict,
            note="" if natural else "The interval is the 90 % one that belongs to two one-sided tests at 5 %.",
        )
    )


def _finding_3b(report: study.Report) -> None:
    """3b: seconds follow neither parameters nor operations."""
    arms = [f"{network}, {COST_ONLY}" for network in (LARGE, SMALL)]
    if not set(arms) <= set(report.results["arm"]):
        return
    first, second = (report.results[report.results["arm"] == arm].iloc[0] for arm in arms)
    macs, parameters = (first[c] / second[c] for c in ("published_gmacs", "published_parameters"))
    ratios = {
        cost: study.statistics.paired_ratio(
            *study.statistics.shared(*(study.by_seed(report.results, arm, cost) for arm in arms))
        )
        for cost in ("published_batch_ms", "published_latency_ms", "training_step_ms")
    }
    report.criterion(
        study.Criterion(
            finding="3b",
            claim="the cost of a network is not its number of parameters",
            source="Sandler et al. 2018; He et al. 2016",
            published="MobileNetV2 0.30 GMACs, 3.5 M parameters; ResNet-18 1.81 GMACs, 11.7 M",
            rule=f"wall-clock ratio {LARGE} / {SMALL} (forward, 224 px), reported beside that of the operations, "
            "is not the ratio of the parameters: its interval does not hold it",
            effect=ratios["published_batch_ms"],
            unit="times the time",
            verdict=_differs(ratios["published_batch_ms"], parameters),
            note=f"Measured with random weights: {second['published_gmacs']:.2f} and {first['published_gmacs']:.2f} "
            f"GMACs (ratio {macs:.2f}), {second['published_parameters'] / 1e6:.2f} and "
            f"{first['published_parameters'] / 1e6:.2f} M parameters (ratio {parameters:.2f}); ratio of the times of "
            f"{model_costs.PUBLISHED_BATCH} images at once {ratios['published_batch_ms'].format(2)}, of one image "
            f"{ratios['published_latency_ms'].format(2)}, of a training step at {report.settings.image_size} px "
            f"{ratios['training_step_ms'].format(2)}.",
        )
    )


def _differs(ratio: study.statistics.Interval, other: float) -> Literal["holds", "fails", "not decided"]:
    """Return whether an interval leaves out a ratio; without an interval that is not decided."""
    if pd.isna(ratio.low):
        return "not decided"
    return "fails" if ratio.low <= other <= ratio.high else "holds"


# %% The study
STUDY = study.Study(
    name="model_size",
    question="How large a pretrained network is worth its cost?",
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
