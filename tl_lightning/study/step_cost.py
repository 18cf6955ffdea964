"""What a training step costs with part of the network frozen, against a step with nothing frozen."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from tl_lightning.callbacks.frozen import FrozenStages
from tl_lightning.flops import flop_counter
from tl_lightning.study.design import Trial
from tl_lightning.study.devices import resolve_devices
from tl_lightning.study.settings import Settings
from tl_lightning.study.training import build_module, data_module
from tl_lightning.tasks import TransferModule


def measure_step_cost(trial: Trial, settings: Settings, depth: int) -> dict[str, float]:
    """Measure a step of the backbone on the first training images, as ``step_cost_ratios`` does."""
    devices = resolve_devices(settings.gpus, settings.precision)
    datamodule = data_module(settings, trial.seed)
    module = build_module(trial.seed, settings.backbone, "none", datamodule.num_classes, 1e-3, settings, {})
    module.to(devices.accelerator)
    batch = next(iter(datamodule.train_dataloader()))
    batch = {name: value.to(devices.accelerator) for name, value in batch.items()}
    batch = datamodule.on_after_batch_transfer(batch, 0)
    return step_cost_ratios(module, batch["image"], batch["label"], depth)


def step_cost_ratios(
    module: TransferModule, image: Tensor, label: Tensor, depth: int, repeats: int = 3
) -> dict[str, float]:
    """Measure steps with ``depth`` stages frozen and with none frozen in turn, on one batch.

    Args:
        module: The module; its weights change.
        image: Images [B, 3, H, W] in [0, 1].
        label: Labels [B].
        depth: Number of frozen stages.
        repeats: Pairs of steps after one pair that warms up.

    Returns:
        ``step_time_ratio``: median over the pairs of measured seconds, frozen over full;
        ``step_flops_ratio``: the same of counted operations of forward and backward: the cost model
        [1 + 2 (1 - f)] / 3 with the share f of the forward operations frozen, exactly counted.
    """
    frozen = FrozenStages(module.backbone, module.stages)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)
    module.train()
    full_flops, frozen_flops = (_flops(module, frozen, d, image, label) for d in (0, depth))
    ratios = []
    for _ in range(repeats + 1):
        full, part = (_seconds(module, optimizer, frozen, d, image, label) for d in (0, depth))
        ratios.append(part / full)
    frozen.release()
    return {"step_time_ratio": statistics.median(ratios[1:]), "step_flops_ratio": frozen_flops / full_flops}


def _seconds(
    module: TransferModule,
    optimizer: torch.optim.Optimizer,
    frozen: FrozenStages,
    depth: int,
    image: Tensor,
    label: Tensor,
) -> float:
    frozen.apply(depth)
    _synchronise(image)
    start = time.perf_counter()
    module.loss(module(image), label).backward()
    optimizer.step()
    _synchronise(image)
    seconds = time.perf_counter() - start
    module.zero_grad(set_to_none=True)
    return seconds


def _flops(module: TransferModule, frozen: FrozenStages, depth: int, image: Tensor, label: Tensor) -> int:
    frozen.apply(depth)
    with flop_counter() as counter:
        module.loss(module(image), label).backward()
    module.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def _synchronise(image: Tensor) -> None:
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
