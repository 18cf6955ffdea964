"""The settings that every study takes; their documentation is the help of the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

# Where and how fast a study runs, or how many seeds of it, does not make it another study: these may change between
# two calls that continue the same output folder.
NOT_PART_OF_THE_STUDY = (
    "gpus",
    "jobs",
    "workers",
    "seeds",
    "out",
    "fresh",
    "retry_failed",
    "cache_dir",
    "cache_size",
    "micro_batch",
    "auto_batch",
    "deterministic",
    "checkpoint_seconds",
    "repeat",
    "launcher",
    "launcher_options",
    "strategy",
    "processes",
    "num_nodes",
)
# What says where and how a call works, and nothing about the trial itself.
NOT_RECORDED = (
    "out",
    "fresh",
    "retry_failed",
    "cache_dir",
    "auto_batch",
    "checkpoint_seconds",
    "repeat",
    "launcher",
    "launcher_options",
)


@dataclass
class Settings:
    """Settings of a study.

    Args:
        gpus: Number of GPUs to use at most; by default one if there is one, 0 for the CPU.
        backbone: A torchvision classification model, or efficientnet_lite0, 1 or 2.
        weights: A torchvision weights name such as IMAGENET1K_V1, none, or the path of a checkpoint.
        data: Name of the image set; imagefolder for your own images.
        data_dir: Folder of the image set; for imagefolder ROOT/{train,val,test}/CLASS/* or ROOT/CLASS/*.
        samples_per_class: Training images a class; all of them by default.
        max_val_samples: Validation images at most, drawn in equal shares of the classes.
        max_test_samples: Test images at most, drawn in equal shares of the classes.
        image_size: Side in pixels to which images are resized.
        epochs: Epochs of training.
        batch_size: Images a training step.
        learning_rates: Learning rates that every arm tries; the validation accuracy selects.
        optimizer: adamw or sgd.
        weight_decay: Decoupled weight decay.
        seeds: Number of seeds, or a list of them; a seed fixes split, subset, head and batch order in all arms.
        precision: Lightning precision; by default bf16-mixed or 16-mixed on a GPU and 32-true on the CPU.
        jobs: Trials at one time on a CPU, each in a process with its share of the cores; on a GPU it is one.
        workers: Processes that decode images; 0 decodes a set once and keeps it.
        on_bad_image: error at an image that cannot be read; skip leaves it out, and the record counts those left out.
        cache_dir: Folder for activations of frozen stages; by default they are kept in memory.
        cache_size: Gigabytes that cached activations may take.
        out: Output folder; logs/STUDY by default.
        fresh: Delete the results that the output folder holds, and start anew.
        retry_failed: Run trials again that failed in an earlier call.
        micro_batch: Images a forward pass; gradients are added up to batch_size. By default all of them at once.
        auto_batch: Where memory is too small, run the trial again with half the micro_batch.
        deterministic: Use deterministic algorithms only, on a GPU too; an operation without one fails the trial.
        checkpoint_seconds: Seconds between checkpoints (at ends of epochs) from which an interrupted fit goes on.
        repeat: Id of a recorded trial to run again in a temporary folder; says whether it agrees, exit code 0 or 1.
        strategy: Lightning strategy inside a trial, such as ddp; batch_size stays that of all processes together.
        processes: Processes of a trial on each machine, with a strategy; one for each of the gpus by default.
        num_nodes: Machines of a trial; give the same command on each, with NODE_RANK and MASTER_ADDR set.
        launcher: local (this process), ray (tasks on this machine or a Ray cluster) or slurm (jobs, by submitit).
        launcher_options: Options of a Ray task (address, num_cpus, num_gpus, ...) or of submitit (timeout_min, ...).
    """

    gpus: int | None = None
    backbone: str = "efficientnet_lite0"
    weights: str = "IMAGENET1K_V1"
    data: str = "elpv"
    data_dir: str | None = None
    samples_per_class: int | None = None
    max_val_samples: int | None = None
    max_test_samples: int | None = None
    image_size: int = 96
    epochs: int = 5
    batch_size: int = 32
    learning_rates: float | list[float] = 1e-3
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    seeds: int | list[int] = 3
    precision: str | None = None
    jobs: int = 1
    workers: int = 0
    on_bad_image: Literal["error", "skip"] = "error"
    cache_dir: str | None = None
    cache_size: float = 4.0
    out: str | None = None
    fresh: bool = False
    retry_failed: bool = False
    micro_batch: int | None = None
    auto_batch: bool = False
    deterministic: bool = False
    checkpoint_seconds: float = 60.0
    repeat: str | None = None
    strategy: str = "auto"
    processes: int | None = None
    num_nodes: int = 1
    launcher: str = "local"
    launcher_options: dict[str, Any] = field(default_factory=dict)

    def seed_list(self) -> list[int]:
        """Return the seeds: 0, 1, ... for a number of them."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def rate_list(self) -> list[float]:
        """Return the learning rates that every arm tries, in ascending order."""
        rates = self.learning_rates
        return sorted(rates) if isinstance(rates, list) else [float(rates)]

    def configuration(self) -> dict[str, Any]:
        """Return what defines the study: two runs may share an output folder only if this agrees."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_PART_OF_THE_STUDY}

    def recorded(self) -> dict[str, Any]:
        """Return what a trial depends on, for its record."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_RECORDED}

    def micro_batch_size(self) -> int:
        """Return the number of images of a forward pass of one process."""
        share = max(1, self.batch_size // self.ranks())
        return min(self.micro_batch or share, share)

    def accumulated_batches(self) -> int:
        """Return the forward passes of a process to an optimizer step."""
        return self.batch_size // (self.micro_batch_size() * self.ranks())

    def ranks_per_node(self) -> int:
        """Return the number of processes of a trial on one machine."""
        return 1 if self.strategy == "auto" else self.processes or max(1, self.gpus or 1)

    def ranks(self) -> int:
        """Return the number of processes of a trial."""
        return self.ranks_per_node() * self.num_nodes

    def halved(self) -> Self:
        """Return the settings with a micro-batch of half the size or, where that is none, the next smaller divisor."""
        most = max(1, self.micro_batch_size() // 2)
        share = self.batch_size // self.ranks()
        return replace(self, micro_batch=max(n for n in range(1, most + 1) if share % n == 0))
