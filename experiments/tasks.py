"""Does pretraining help classification, object detection and segmentation alike?

Question   What do pretrained weights gain over random ones in three tasks, at several numbers of training images, and
           does the gain vanish when training takes four times as long?
Command    python experiments/tasks.py                    EfficientNet-Lite0 on ELPV and composed scenes, under 10 min
           python experiments/tasks.py --config configs/tasks_bench.yaml --data-dir CIFAR10 --detection-dir BCCD
               --segmentation-dir CAMVID                  photographs, blood cells, road scenes
           python experiments/tasks.py --config configs/tasks_cifar10.yaml --gpus 1
Expected   Pretraining speeds up early convergence and helps most with few images; with enough of both, random weights
           come close in detection and segmentation (He et al. 2018, "Rethinking ImageNet pre-training").
"""

# %%
from __future__ import annotations

from dataclasses import replace

import pandas as pd

import tl_lightning as tl
from tl_lightning import study
from tl_lightning.data import DATASETS
from tl_lightning.data.dense_datasets import DENSE_SETS
from tl_lightning.errors import UserError, unknown_name
from tl_lightning.study import Arm, Trial
from tl_lightning.study.step_budget import check_sizes
from tl_lightning.study.task_settings import DENSE, METRICS, TaskSettings

BACKGROUND = """
Three tasks on the same pretrained network. **Classification** gives one label an image, here by a new last layer.
**Object detection** gives a box and a label for each object: a detector's heads, all new, look at the network's feature
maps at several strides. **Semantic segmentation** gives a label for each pixel by a new head on these maps. Only the
backbone can be pretrained; in the dense tasks more of the model is new, and places matter, which ImageNet's labels
never told. So it is not obvious that pretraining helps there as much.

**Metrics**, all between 0 and 1: *accuracy*; *mAP*, COCO's mean average precision over overlaps (intersection over
union, IoU) of 0.5 to 0.95; *mIoU*, the mean over classes of the IoU of predicted and true pixels. Points of different
metrics are not comparable with each other: compare the shapes of the curves of two tasks, not their heights.

**Schedules**: every size takes the same number of optimizer steps (1x), so that more images do not mean more training.
At the largest size both starts are also trained four times as long (4x) in detection and segmentation. Where
pretraining only saves time the gap closes at 4x; where it adds knowledge that the images do not hold, it stays.

**How to read the figures**: in *metric by images* the vertical distance of pretrained and scratch is the gap; *gap by
images* shows it alone with its interval, above 0 pretraining helps. The learning curves show when each start arrives.

Sources: He et al. 2018, "Rethinking ImageNet pre-training"; Raghu et al. 2019, "Transfusion"; Ren et al. 2015, "Faster
R-CNN"; Howard et al. 2019, "Searching for MobileNetV3" (LR-ASPP); Deitsch et al. 2019 (ELPV).
"""

WORDS = {"accuracy": "accuracy", "map": "mAP", "miou": "mIoU"}
STARTS = ("pretrained", "scratch")
LONGER = 4
VALIDATIONS = 4  # in a fit, whatever its epochs
CERTAIN = 0.5  # score from which a box is drawn
LEARNT = 0.05  # mAP or mIoU above that of a model that finds nothing, below which a comparison says nothing


# %% The grid
def name(task: str, start: str, images: int, schedule: int = 1) -> str:
    """Return the name of an arm."""
    return f"{task}, {start} {schedule}x, {images} images"


def arms(settings: TaskSettings) -> list[Arm]:
    """Return both starts at every size in every task, and the longer schedule at the largest in the dense tasks."""
    cells = [(task, start, n, 1) for task in settings.tasks for n in sorted(settings.sizes) for start in STARTS]
    longest = max(settings.sizes)
    cells += [(task, start, longest, LONGER) for task in settings.tasks if task in DENSE for start in STARTS]
    return [
        Arm(name(*cell), dict(zip(("task", "start", "images", "schedule"), cell, strict=True)))
        for cell in sorted(cells, key=lambda cell: settings.tasks.index(cell[0]))
    ]


def a_class(images: int, settings: TaskSettings) -> int:
    """Return the training images a class that make so many in all."""
    classes = study.data_module(settings, settings.seed_list()[0], samples_per_class=1).num_classes
    if images % classes:
        raise UserError(f"--sizes: {images} images are no equal shares of the {classes} classes of {settings.data}")
    return images // classes


def check(settings: TaskSettings) -> None:
    """Refuse what no trial could run; every image and annotation that a trial will use is read here."""
    check_sizes(settings.sizes)
    for task in settings.tasks:
        if task not in METRICS:
            raise unknown_name("task", task, METRICS)
    if not settings.tasks or len(set(settings.tasks)) < len(settings.tasks):
        raise UserError(f"--tasks must name at least one of {', '.join(METRICS)}, none twice, not {settings.tasks}")
    if settings.weights == "none":
        raise UserError("--weights none leaves nothing to compare with scratch: name pretrained weights")
    if "classification" in settings.tasks:
        shares = [a_class(images, settings) for images in settings.sizes]
        study.check_training(replace(settings, samples_per_class=max(shares)))
    for task in settings.tasks:
        if task in DENSE:
            study.check_dense_training(settings, settings.dense(task), max(settings.sizes))


# %% One trial
def run(trial: Trial, settings: TaskSettings) -> dict[str, object]:
    """Train and test one arm at one seed; the dense tasks keep a few predictions to look at."""
    task, start, images, schedule = (trial.arm.factors[key] for key in ("task", "start", "images", "schedule"))
    longer = replace(settings, epochs=settings.epochs * schedule)
    budget = study.equal_steps(images, max(settings.sizes), longer, VALIDATIONS)
    weights = "none" if start == "scratch" else settings.weights
    options = {"weights": weights, "epochs": budget.epochs, "callbacks": budget.callbacks}
    if task not in DENSE:
        return study.train_and_test(
            trial, settings, data_options={"samples_per_class": a_class(images, settings)}, **options
        )

    def keep(module: tl.DetectionModule | tl.SegmentationModule, datamodule: tl.DenseDataModule) -> dict[str, object]:
        study.keep_dense_examples(trial.folder, module, datamodule)
        return {"num_classes": datamodule.num_classes}

    return study.train_and_test_dense(
        trial, settings, settings.dense(task), train_images=images, inspect=keep, **options
    )


# %% What is reported
def report(report: study.Report) -> None:
    """A section for each task, the gaps side by side, the criteria."""
    settings, results = report.settings, report.results
    sizes = sorted(settings.sizes)
    gaps = {}
    for task in settings.tasks:
        rows = results[results["task"] == task]
        if len(rows):
            _task_section(report, task, rows)
            metric = METRICS[task]
            gaps[f"{task} ({WORDS[metric]})"] = {
                n: study.compare(results, *(name(task, start, n) for start in STARTS), f"test_{metric}") for n in sizes
            }
    report.section("What pretraining gains, task by task", study.HOW_TO_READ_DIFFERENCES)
    figure = study.plots.gains_against_number(
        gaps, number_text="Training images", gain_text="Pretrained - scratch (points of the metric)"
    )
    named = {f"{words}, {n} images": c for words, by_size in gaps.items() for n, c in by_size.items()}
    report.table(
        study.comparison_table(study.statistics.holm(named)).rename(columns={"arm": "pretrained - scratch, 1x"})
    )
    report.figure("gap_by_images", figure, "Gap between pretrained and scratch at the 1x schedule, in points.")
    for words, by_size in gaps.items():
        told = "; ".join(f"{c.difference.scaled(100).format(1)} with {n} images" for n, c in by_size.items())
        report.conclude(f"The gap pretrained - scratch at 1x, in points, in {words}: {told}.")
    report.conclude(
        f"Both starts were trained with the same learning rates ({', '.join(map(str, settings.rate_list()))}): a gap "
        "holds for these."
    )
    for task in settings.tasks:
        if task in DENSE and (results["task"] == task).any():
            report.conclude(_by_schedule(report, task, max(sizes)))
            _criterion(report, task)


def _task_section(report: study.Report, task: str, rows: pd.DataFrame) -> None:
    settings, metric = report.settings, METRICS[task]
    data = settings.data if task not in DENSE else settings.dense(task).data
    card = (DATASETS if task not in DENSE else DENSE_SETS)[data]
    report.section(
        task.capitalize(), f"Images: {data} ({card.source}). Overlap with ImageNet: {card.imagenet_overlap}."
    )
    if data == "scenes":
        report.text("The scenes are **composed**: real handwritten digits on made-up backgrounds, not photographs.")
    score = f"test_{metric}"
    means = rows.groupby("arm", sort=False)[score].mean()
    floor = 1 / rows["num_classes"].max() if task == "segmentation" else 0.0  # what one class alone can reach
    flat = [f"*{arm}* ({mean:.3f})" for arm, mean in means.items() if task in DENSE and mean < floor + LEARNT]
    if flat:
        report.conclude(f"**Nothing learnt** in {task}, by its {WORDS[metric]}: {'; '.join(flat)}.")
    report.table(study.arm_table(rows.dropna(axis=1, how="all"), report.arms))
    series = rows["start"] + " " + rows["schedule"].astype(str) + "x"
    figure = study.plots.metric_against_number(
        rows.assign(series=series),
        "images",
        "series",
        metric=score,
        number_text="Training images",
        metric_text=f"Test {WORDS[metric]}" + (" (%)" if metric == "accuracy" else ""),
    )
    report.figure(f"{task}_by_images", figure, f"Test {WORDS[metric]} by the number of training images.")
    if task not in DENSE:
        return
    largest = [arm for arm in report.arms if arm in set(rows.loc[rows["images"] == max(settings.sizes), "arm"])]
    curves = report.curves[report.curves["arm"].isin(largest)]
    short = [_without_task(arm) for arm in largest]
    figure = study.plots.learning_curves(
        curves.assign(arm=curves["arm"].map(_without_task)), ("train/loss", f"val/{metric}"), short
    )
    report.figure(f"{task}_curves", figure, f"Training loss and validation {WORDS[metric]} at the largest size.")
    _examples(report, task, rows[rows["arm"].isin(largest) & (rows["seed"] == rows["seed"].min())])


def _without_task(arm: str) -> str:
    return arm.partition(", ")[2]


def _examples(report: study.Report, task: str, rows: pd.DataFrame) -> None:
    """Draw what the models of one seed find in validation images, where the trials' folders still hold it."""
    found = {}
    for arm, trial in zip(rows["arm"], rows["trial"], strict=True):
        examples = study.read_dense_examples(report.out / "trials" / trial)
        if examples is not None:
            found[_without_task(arm)] = examples
    if found:
        drawn = f"Boxes with a score of at least {CERTAIN}" if task == "detection" else "Masks"
        caption = f"{drawn} on the first validation images, seed {rows['seed'].min()}; the first row is the truth."
        report.figure(f"{task}_examples", study.plots.dense_predictions(found, CERTAIN), caption)


def _by_schedule(report: study.Report, task: str, images: int) -> str:
    """Say what both starts reach at both schedules."""
    metric = METRICS[task]
    means = report.results.groupby("arm")[f"test_{metric}"].mean()
    told = [
        f"{schedule}x {means.get(name(task, 'pretrained', images, schedule), float('nan')):.3f} pretrained, "
        f"{means.get(name(task, 'scratch', images, schedule), float('nan')):.3f} scratch"
        for schedule in (1, LONGER)
    ]
    return f"{WORDS[metric]} with {images} images: {'; '.join(told)}."


def _criterion(report: study.Report, task: str) -> None:
    """4a: the gap at the 1x schedule is larger than at 4x."""
    n, metric = max(report.settings.sizes), METRICS[task]
    pairs = [tuple(name(task, start, n, schedule) for start in STARTS) for schedule in (1, LONGER)]
    shrinks = study.contrast(report.results, *pairs, f"test_{metric}").difference.scaled(100)
    report.criterion(
        study.Criterion(
            finding="4a",
            claim=f"pretraining speeds early convergence in {task}: the gap closes with longer training",
            source="He et al. 2018",
            published="COCO: large gap at short schedules, none at 5x to 6x",
            rule=f"gap at the 1x schedule - gap at {LONGER}x above 0, test {WORDS[metric]}, {n} images",
            effect=shrinks,
            unit="points",
            verdict=study.statistics.decide(shrinks, 0.0, "above"),
            note=f"{_by_schedule(report, task, n)} Meant for BCCD (detection) and CamVid (segmentation); this is "
            f"{task} in {report.settings.dense(task).data} with {report.settings.backbone}. "
            f"1x is {report.settings.epochs} epochs of {n} images.",
        )
    )


# %% The study
STUDY = study.Study(
    name="tasks",
    question="Does pretraining help classification, object detection and segmentation alike?",
    background=BACKGROUND,
    arms=arms,
    run=run,
    report=report,
    settings=TaskSettings,
    check=check,
)

# %%
if __name__ == "__main__":
    study.main(STUDY)
