"""Which device a study runs on, and in which precision."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.strategies import StrategyRegistry

from tl_lightning.errors import UserError, unknown_name


@dataclass(frozen=True)
class Devices:
    """What a trial runs on.

    Attributes:
        accelerator: Lightning's name of the accelerator, ``cuda`` or ``cpu``.
        count: Number of devices that a trial uses.
        name: Name of the hardware, for the record.
        precision: Lightning's name of the precision.
        note: What to tell the user when they asked for more than there is; empty otherwise.
    """

    accelerator: str
    count: int
    name: str
    precision: str
    note: str


def resolve_devices(gpus: int | None, precision: str | None) -> Devices:
    """Return the devices to run on: up to ``gpus`` GPUs (one by default), else the CPU."""
    visible = torch.cuda.device_count()
    wanted = min(1, visible) if gpus is None else gpus
    if wanted and visible:
        note = f"--gpus {wanted}: {visible} visible" if wanted > visible else ""
        if wanted > 1:
            note = f"--gpus {wanted}: a trial runs on one GPU; {min(wanted, visible) - 1} stay unused"
        mixed = "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        return Devices("cuda", 1, torch.cuda.get_device_name(), precision or mixed, note)
    note = f"--gpus {wanted}: no GPU is visible, running on the CPU" if wanted else ""
    return Devices("cpu", 1, _cpu_name(), precision or "32-true", note)


def check_strategy(strategy: str, devices: Devices) -> None:
    """Raise ``UserError`` for a strategy that Lightning does not know, or that takes GPUs where there are none."""
    known = StrategyRegistry.available_strategies()
    if strategy not in ("auto", *known):
        raise unknown_name("strategy", strategy, known)
    if "fsdp" in strategy and devices.accelerator != "cuda":
        raise UserError(f"--strategy {strategy} takes GPUs, and none is visible: ddp runs on CPUs too")


def _cpu_name() -> str:
    """Return the processor's name and the number of threads that torch uses."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name} ({torch.get_num_threads()} threads)"
