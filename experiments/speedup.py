"""What makes fine-tuning quicker, and by how much?

Question   Which of the usual means (freezing lower layers, cached activations, learning-rate schedules, progressive
           resizing, mixed precision, channels-last memory, torch.compile) reach a fixed validation accuracy sooner than
           plain fine-tuning, each alone and together?
Command    python experiments/speedup.py               EfficientNet-Lite0 on ELPV, laptop, 8 minutes
           python experiments/speedup.py --config configs/speedup_cifar10.yaml --gpus 1
Expected   A pretrained network needs far fewer steps than one from scratch (Kornblith et al. 2019: about 17 times).
           With the share f of the forward operations frozen a step costs [1 + 2 (1 - f)] / 3 of a full one, and cached
           features cost one forward pass in all. Gradual unfreezing gains nothing over fine-tuning that is tuned.
"""

# %%
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tl_lightning as tl
from tl_lightning import study
from tl_lightning.callbacks import CompiledTraining, ProgressiveResizing, TrainingClock
from tl_lightning.callbacks.compiled_training import check_compiler
from tl_lightning.callbacks.progressive_resizing import growing
from tl_lightning.study import Arm, Trial, speed, time_to_target

BACKGROUND = """
What counts is not the time of a step but the **time to an accuracy**: a step that is twice as fast is worth nothing
if twice as many are needed. The target is fixed by a rule before the run: for each seed, the validation accuracy that
plain fine-tuning has at its end, less a margin. Every arm is plain fine-tuning (constant learning rate, 32-bit numbers,
full images, everything trains) with one thing changed, or with several together:

- **Freezing** lower layers: no backward pass through them. Their features never change, so they can be computed once
  and **cached**: one forward pass in all. **Gradual unfreezing** begins with the head and thaws stage by stage.
- **Learning-rate schedules**: a step (a tenth from half, a hundredth from three quarters on), a cosine, one cycle (a
  rise, then a long fall), a linear warm-up.
- **Progressive resizing**: small images first. **Mixed precision**: products in bfloat16, quick only on hardware that
  has them. **Channels last**: another order of the numbers in memory. **torch.compile**: generated code; compiling it
  takes its time, which counts.

**How to read the figure of times**: further left is sooner. A bar is the geometric mean over seeds, dots are single
seeds, an open triangle is a seed that never reached the target in the epochs it was given: it is shown at the end of
its training, and its arm's speed-up is then an upper bound. The time is that of training (validation is left out); that
of computing cached features and of compiling counts; accuracy is looked at after every epoch.

Steps of a throw-away model run before the first trial is timed. The first step of a fit, and the first after stages
thaw, is slower because its operations are counted: it enters with the mean time of the other steps of its epoch. With
`--jobs 1` no trial shares the processor with another.

Sources: Kornblith et al. 2019, "Do better ImageNet models transfer better?"; Howard & Ruder 2018 (gradual unfreezing);
Smith 2018, "A disciplined approach to neural network hyper-parameters" (one cycle); Goyal et al. 2017 (warm-up); Tan &
Le 2021, "EfficientNetV2" (progressive learning); Micikevicius et al. 2018, "Mixed precision training"; Coleman et al.
2019, "Analysis of DAWNBench" (time to accuracy).
"""

PLAIN, SCRATCH, GRADUAL = "plain fine-tuning", "from scratch", "gradual unfreezing"
DEFAULTS: dict[str, Any] = {
    "frozen": "nothing", "cached": False, "schedule": "constant", "warmup": 0.0, "resizing": False,
    "mixed": False, "channels_last": False, "compiled": False, "pretrained": True,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "step schedule": {"schedule": "step"},
    "cosine schedule": {"schedule": "cosine"},
    "one-cycle schedule": {"schedule": "one_cycle"},
    "warm-up": {"warmup": 0.1},
    "lower half frozen": {"frozen": "half"},
    "lower half frozen, cached": {"frozen": "half", "cached": True},
    "head only": {"frozen": "head"},
    "head only, cached": {"frozen": "head", "cached": True},
    GRADUAL: {"frozen": "gradual"},
    "progressive resizing": {"resizing": True},
    "mixed precision": {"mixed": True},
    "channels last": {"channels_last": True},
    "torch.compile": {"compiled": True},
    "together, live images": {"frozen": "half", "schedule": "one_cycle", "resizing": True, "channels_last": True},
    "together, cached": {"frozen": "half", "cached": True, "schedule": "one_cycle", "channels_last": True},
    SCRATCH: {"pretrained": False},
}
NULL_MARGIN = 0.02  # 6c: a difference below 2 points in test accuracy counts as none


@dataclass
class Settings(study.Settings):
    """Settings of the study of speed.

    Args:
        smallest_side: Side in pixels at which progressive resizing begins.
        scratch_factor: How many times more epochs the network from scratch gets.
        scratch_learning_rates: Learning rates of the network from scratch, as many as the others try.
        target_margin: How far below the final validation accuracy of plain fine-tuning the target lies.
        compile: Add an arm with torch.compile; it needs a C++ compiler, and compiling takes minutes on a CPU.
    """

    smallest_side: int = 64
    scratch_factor: int = 3
    scratch_learning_rates: float | list[float] = 1e-3
    target_margin: float = 0.02
    compile: bool = False


# %% The grid
def arms(settings: Settings) -> list[Arm]:
    """Return plain fine-tuning, each means alone, some together, and the network from scratch."""
    grid = [Arm(name, {**DEFAULTS, **changes}) for name, changes in ARMS.items()]
    return [arm for arm in grid if settings.compile or not arm.factors["compiled"]]


def frozen(arm: Arm, settings: Settings) -> int | dict[int, int]:
    """Return the depth that an arm freezes, or its schedule: head first, from half of the epochs on everything."""
    head = speed.stage_count(settings.backbone) - 1
    if arm.factors["frozen"] == "gradual":
        last = max(1, settings.epochs // 2)
        return {epoch: round(head * (1 - epoch / last)) for epoch in range(last + 1)}
    return {"nothing": 0, "half": (head + 1) // 2, "head": head}[str(arm.factors["frozen"])]


def epochs(arm: Arm, settings: Settings) -> int:
    """Return the epochs of an arm: more from scratch, which needs them."""
    return settings.epochs * (1 if arm.factors["pretrained"] else settings.scratch_factor)


def check(settings: Settings) -> None:
    """Refuse, before anything is trained, what no trial could run."""
    study.check_training(settings)
    study.check_rates("--scratch-learning-rates", settings.scratch_learning_rates, len(settings.rate_list()))
    speed.check_sides(settings.backbone, settings.smallest_side, settings.image_size)
    if settings.scratch_factor < 1 or not 0 <= settings.target_margin < 1:
        raise tl.UserError("--scratch-factor must be at least 1 and --target-margin lie between 0 and 1")
    if settings.compile:
        check_compiler(speed.device_type(settings))


# %% One trial
def run(trial: Trial, settings: Settings) -> dict[str, Any]:
    """Train and test one arm on its own: without activations that another one has computed."""
    speed.warm_up(trial, settings)
    speed.forget_activations()
    factors, depth = trial.arm.factors, frozen(trial.arm, settings)
    sides = growing(settings.smallest_side, settings.image_size, settings.epochs) if factors["resizing"] else {}

    def callbacks() -> list[Any]:
        made: list[Any] = [TrainingClock()]
        made += [ProgressiveResizing(sides)] if sides else []
        return made + ([CompiledTraining()] if factors["compiled"] else [])

    rates = settings.learning_rates if factors["pretrained"] else settings.scratch_learning_rates
    record = study.train_and_test(
        trial,
        settings if factors["cached"] else replace(settings, cache_size=0.0),
        freezing=depth,
        callbacks=callbacks,
        module_options={
            "schedule": factors["schedule"],
            "warmup_fraction": factors["warmup"],
            "channels_last": factors["channels_last"],
        },
        precision="bf16-mixed" if factors["mixed"] else "32-true",
        weights=settings.weights if factors["pretrained"] else "none",
        epochs=epochs(trial.arm, settings),
        learning_rates=study.rates(rates),
        inspect=lambda module, images: speed.forward_pass(module, images, settings) if factors["cached"] else {},
    )
    if isinstance(depth, int) and depth > 0 and not factors["cached"]:
        record |= study.measure_step_cost(trial, replace(settings, precision="32-true"), depth)
    record["clock_seconds"] = time_to_target.clock_seconds(record)
    return record | ({"train_flops": None} if sides else {})  # counted in the first step only, whose images are small


# %% What is reported
def report(report: study.Report) -> None:
    """Tables, figures and criteria."""
    targets = {
        seed: value - report.settings.target_margin
        for seed, value in time_to_target.final_values(report.curves, PLAIN).items()
    }
    if not targets:
        raise tl.UserError(f"no trial of {PLAIN!r} ended, whose accuracy is the target")
    times = time_to_target.times_to_target(report.curves, report.results, targets)
    others = [arm for arm in report.arms if arm != PLAIN and arm in set(times["arm"])]
    ups = {arm: time_to_target.speed_up(times, arm, PLAIN) for arm in others}
    speed.conclude(report, ups, PLAIN, SCRATCH)
    together = max(record["settings"].get("jobs", 1) for record in report.records)
    if together > 1:
        report.conclude(
            f"**Timed beside one another**: {together} trials at a time shared the processor, each with its part of "
            "the cores; what runs beside a trial adds to the spread of its time."
        )

    report.section("Time to the target", speed.target_text(targets, report.settings.target_margin, PLAIN))
    report.table(time_to_target.time_table(times, ups, report.arms))
    texts = {arm: up.format() for arm, up in ups.items()}
    ratios = {arm: up.interval for arm, up in ups.items() if not up.censored}
    figure = study.plots.target_times(times, report.arms, texts=texts, reference=PLAIN, ratios=ratios)
    report.figure("time_to_target", figure, "Seconds of training to the target; on the right the speed-up.")
    shown = [PLAIN, "one-cycle schedule", "lower half frozen, cached", GRADUAL, "together, cached", SCRATCH]
    curves = report.curves[report.curves["arm"].isin(shown)]
    figure = study.plots.learning_curves(curves, metrics=("val/accuracy",), arms=shown, x="time/train_seconds")
    report.figure(
        "accuracy_by_time", figure, "Validation accuracy by seconds of training, cached features not counted."
    )

    report.section("Time of a step", speed.STEP_TEXT)
    report.table(speed.step_table(report.results, report.arms, PLAIN))

    report.section("Does it cost accuracy?", study.HOW_TO_READ_DIFFERENCES)
    differences = study.compare_all(report.results, PLAIN, "test_accuracy")
    report.table(study.comparison_table(differences))
    report.figure("differences", study.plots.paired_differences(differences), f"Paired difference to {PLAIN}.")
    report.table(study.arm_table(report.results, report.arms))
    _criteria(report)


def _criteria(report: study.Report) -> None:
    """6a: steps of pretrained and scratch; 6b: the cost model; 6c: gradual unfreezing."""
    results, decide = report.results, study.statistics.decide
    finals = time_to_target.final_values(report.curves, SCRATCH)
    if finals and PLAIN in set(results["arm"]):
        times = time_to_target.times_to_target(report.curves, results, finals)
        fewer = time_to_target.speed_up(times, PLAIN, SCRATCH, "steps")
        report.criterion(
            study.Criterion(
                finding="6a",
                claim="a pretrained network reaches the accuracy that scratch ends with in far fewer steps",
                source="Kornblith et al. 2019",
                published="about 17 times fewer steps",
                rule="steps until scratch first validates at its final accuracy / steps of the pretrained one > 3",
                effect=fewer.interval,
                unit="times fewer steps",
                verdict="not decided" if fewer.censored else decide(fewer.interval, 3.0, "above"),
                note=speed.steps_note(times, PLAIN, SCRATCH, fewer.censored, report.settings.scratch_factor),
            )
        )
    for criterion in (speed.cost_model_criterion(results), speed.cache_criterion(results)):
        if criterion is not None:
            report.criterion(criterion)
    arms = [study.by_seed(results, arm, "test_accuracy") for arm in (GRADUAL, PLAIN)]
    if all(arms):
        null = study.statistics.equivalence(*study.statistics.shared(*arms), NULL_MARGIN).difference
        report.criterion(
            study.Criterion(
                finding="6c",
                claim="gradual unfreezing is no better than fine-tuning where both are tuned",
                source="Howard & Ruder 2018, for text; for CNNs no solid evidence",
                published="null expected; a large gain flags an untuned baseline",
                rule=f"|{GRADUAL} - {PLAIN}| below 2 points of test accuracy (two one-sided tests)",
                effect=null.scaled(100),
                unit="points",
                verdict=decide(null, (-NULL_MARGIN, NULL_MARGIN), "within"),
                note=f"Each tried {len(report.settings.rate_list())} learning rates; the interval is the 90 % one of "
                "two one-sided tests at 5 %.",
            )
        )


# %% The study
STUDY = study.Study(
    name="speedup",
    question="What makes fine-tuning quicker, and by how much?",
    background=BACKGROUND,
    arms=arms,
    run=run,
    report=report,
    settings=Settings,
    check=check,
    plan=lambda arm, settings: study.freezing_plan(
        replace(settings, epochs=epochs(arm, settings)), frozen(arm, settings)
    ),
)

# %%
if __name__ == "__main__":
    study.main(STUDY)
