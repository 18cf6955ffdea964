"""What does a network look at, and what does fine-tuning change in it?

Question   Which parts of an image speak for the class before, during and after training, which stages change, and can
           the maps be trusted?
Command    python experiments/interpretability.py                 EfficientNet-Lite0 on ELPV, laptop, 8 minutes
           python experiments/interpretability.py --config configs/interpretability_cifar10.yaml --gpus 1
Expected   Early stages stay close to the pretrained ones, and two fine-tuned networks are more alike than two trained
           from scratch (Neyshabur et al. 2020). Grad-CAM changes when the weights are randomised, guided
           backpropagation hardly does (Adebayo et al. 2018); it points at the right image of a grid.
"""

# %%
from __future__ import annotations

from dataclasses import dataclass

from tl_lightning import study
from tl_lightning.errors import UserError
from tl_lightning.study import Arm, Trial

BACKGROUND = """
**Grad-CAM** (Selvaraju et al. 2017) weights the feature maps of a late layer by how much each speaks for a class, and
draws their sum over the image: bright is what the class score rests on. It is as coarse as these maps (5 x 5 cells for
160 px). **Guided backpropagation** (Springenberg et al. 2015) gives a fine map of pixels, but mostly shows edges.

A map can look plausible and still say nothing about the model. Three tests: the **sanity check** (Adebayo et al. 2018)
randomises the weights from the head down and asks whether the map changes, as it must (*rank correlation* 1: the same
order of pixels, 0: unrelated). The **grid pointing game** (Boehle et al. 2021) shows four images at once and asks
whether the map for the class of one of them lies in its cell; chance is 0.25. **ROAD** (Rong et al. 2022) replaces
pixels by a blur of their neighbours: without the pixels that a faithful map ranks highest the class probability falls
faster than without the lowest; half the gap is the score, 0 is chance.

**Linear CKA** (Kornblith et al. 2019) says how alike two networks order the same images, stage by stage: 1 means alike
but for rotation and scale, 0 unrelated. **Weight drift** is the distance that weights moved, relative to their length.
A *twin* has the same images but another head, another order of batches and, from scratch, other initial weights.

**Feature visualisation** (Simonyan et al. 2013, Olah et al. 2017) climbs from noise to an image that excites one
channel as much as possible: what the channel looks for, without any data.
"""

FINE, PROBE, SCRATCH = "fine-tuned", "linear probe", "from scratch"


@dataclass
class Settings(study.Settings):
    """Settings of this study.

    Args:
        target_layer: Layer of the backbone that Grad-CAM looks at; the last feature maps by default.
        explained_images: Validation images for CKA, the sanity check and the choice of grids.
        panel_images: Images in the panels, at most 16.
        cascade_steps: Stages at which the sanity check compares maps.
        grids: Grids of the pointing game; 0 leaves it out (a backbone of fixed size cannot take them).
        road_images: Images of the ROAD score; 0 leaves it out.
        visualised_channels: Channels that are visualised in each of three layers; 0 leaves it out.
        visualisation_steps: Steps of gradient ascent.
        scratch_epochs: Epochs from random weights; as many as for the others by default.
        scratch_learning_rates: Learning rates from random weights, as many as learning_rates; the same by default.
    """

    target_layer: str | None = None
    explained_images: int = 100
    panel_images: int = 6
    cascade_steps: int = 5
    grids: int = 40
    road_images: int = 8
    visualised_channels: int = 4
    visualisation_steps: int = 64
    scratch_epochs: int | None = None
    scratch_learning_rates: float | list[float] | None = None


# %% The grid
def arms(settings: Settings) -> list[Arm]:
    """Return the arms: everything trained from pretrained weights, the head alone, everything from random weights."""
    return [
        Arm(FINE, {"start": settings.weights, "frozen": "none"}),
        Arm(PROBE, {"start": settings.weights, "frozen": "head"}),
        Arm(SCRATCH, {"start": "none", "frozen": "none"}),
    ]


def epochs(arm: Arm, settings: Settings) -> int:
    """Return the epochs of an arm."""
    return (settings.scratch_epochs if arm.name == SCRATCH else None) or settings.epochs


def rates(arm: Arm, settings: Settings) -> list[float]:
    """Return the learning rates of an arm."""
    own = settings.scratch_learning_rates if arm.name == SCRATCH else None
    return settings.rate_list() if own is None else own if isinstance(own, list) else [own]


def check(settings: Settings) -> None:
    """Refuse what no trial could run: a target layer that is not there, numbers that make no sense."""
    least = {"explained_images": 8, "panel_images": 1, "cascade_steps": 1, "visualisation_steps": 1}
    least |= {"grids": 0, "road_images": 0, "visualised_channels": 0, "scratch_epochs": 1}
    for name, number in least.items():
        given = getattr(settings, name)
        if given is not None and given < number:
            raise UserError(f"--{name.replace('_', '-')} must be at least {number}, not {given}")
    if settings.panel_images > 16:
        raise UserError(f"--panel-images must be at most 16, not {settings.panel_images}")
    scratch = arms(settings)[-1]
    if len(rates(scratch, settings)) != len(settings.rate_list()) or min(rates(scratch, settings)) <= 0:
        raise UserError("--scratch-learning-rates must be numbers above 0, as many as --learning-rates")
    study.check_training(settings)
    study.explanations.check_explanations(settings, settings.target_layer, settings.grids > 0)


# %% One trial
def run(trial: Trial, settings: Settings) -> dict[str, object]:
    """Train one arm and its twin, look into what came out, test it; pictures are kept of the first seed alone."""
    arm, pictures = trial.arm, trial.seed == settings.seed_list()[0]
    images, weights = study.data_module(settings, trial.seed), str(arm.factors["start"])
    panel = study.explanations.panel_images(images, settings.panel_images) if pictures else None

    def panels() -> list:
        half = epochs(arm, settings) // 2
        return [study.explanations.gradcam_logger(panel, settings.target_layer, half)] if panel is not None else []

    fits = study.fit_classifier(
        trial,
        settings,
        freezing=arm.factors["frozen"],
        weights=weights,
        epochs=epochs(arm, settings),
        learning_rates=rates(arm, settings),
        callbacks=panels,
    )
    twin = None
    if arm.name != PROBE:
        twin = study.fit_twin(trial, settings, fits.best.lr, weights=weights, epochs=epochs(arm, settings)).best.module
    look = study.explanations.Look(trial, settings, images, fits, twin, panel)
    found = study.evaluate_selected(trial, fits, inspect=lambda module, _: look_into(look, module))
    return {"backbone": settings.backbone, "weights": weights, **found}


def look_into(look: study.explanations.Look, module: object) -> dict[str, object]:
    """Return what is seen in a trained module on validation images."""
    look.place(module)
    values = look.representations(module) | look.pointing(module) | look.road(module)
    if look.trial.arm.name == FINE:
        values |= look.sanity(module)
    if look.panel is not None:
        look.keep_panels(module)
    if look.trial.arm.name != PROBE:
        values |= look.features(module, before=look.trial.arm.name == FINE)
    return values


# %% What is reported
def report(report: study.Report) -> None:
    """Panels, representations, sanity check, faithfulness, features; the criteria."""
    sections = study.explanations_report
    report.section("What was trained")
    report.table(study.arm_table(report.results, report.arms))
    sections.panels(report, FINE)
    sections.stages(report, FINE, SCRATCH)
    sections.sanity(report, FINE)
    sections.pointing(report, FINE)
    sections.features(report, FINE, SCRATCH)
    sections.criteria(report, FINE, SCRATCH)


# %% The study
STUDY = study.Study(
    name="interpretability",
    question="What does a network look at, and what does fine-tuning change in it?",
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
