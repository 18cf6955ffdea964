"""What a schedule will do, epoch by epoch, before anything is trained."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tl_lightning.backbones import Stages
from tl_lightning.callbacks.discriminative_lr import DiscriminativeLR
from tl_lightning.callbacks.freezing_schedule import FreezingSchedule
from tl_lightning.callbacks.frozen import BnPolicy, FrozenStages, let_go
from tl_lightning.flops import flop_counter

_BATCH = 8  # images: more than one, as BatchNorm in train mode needs


@dataclass(frozen=True)
class Cost:
    """Cost of one training image: FLOPs of the backward pass and bytes that the forward pass keeps for it."""

    backward_flops: float
    activation_bytes: float


@dataclass(frozen=True)
class PlanRow:
    """One epoch.

    Attributes:
        epoch: The epoch, from 0.
        depth: Number of frozen stages.
        stages: The stages that train.
        trainable_parameters: Number of weights that train.
        bn: BatchNorm policy of the frozen stages.
        learning_rates: Rate of every stage in the first step of the epoch, if the base rate is known.
        backward_share: FLOPs of the backward pass as a share of those with nothing frozen.
        activation_share: Memory of kept activations as a share of that with nothing frozen.
    """

    epoch: int
    depth: int
    stages: tuple[str, ...]
    trainable_parameters: int
    bn: BnPolicy
    learning_rates: Mapping[str, float]
    backward_share: float
    activation_share: float


@dataclass(frozen=True)
class Plan:
    """The rows of all epochs; printed as a table."""

    rows: tuple[PlanRow, ...]
    total_parameters: int
    note: str = ""

    def __str__(self) -> str:
        header = ["epoch", "trains", "parameters", "bn", "backward", "activations", "learning rates"]
        table = [header, *(self._cells(row) for row in self._changes())]
        widths = [max(len(line[k]) for line in table) for k in range(len(header))]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table]
        lines = ["  ".join(cells).rstrip() for cells in padded]
        return "\n".join([*lines, *([self.note] if self.note else [])])

    def _changes(self) -> Iterator[tuple[int, PlanRow]]:
        """Yield one row for every run of epochs in which the same trains, with the last epoch of the run."""
        for _, run in itertools.groupby(self.rows, key=lambda row: (row.depth, row.learning_rates)):
            rows = list(run)
            yield rows[-1].epoch, rows[0]

    def _cells(self, change: tuple[int, PlanRow]) -> list[str]:
        last, row = change
        trains = f"{row.stages[0]} to {row.stages[-1]}" if len(row.stages) > 1 else "".join(row.stages) or "nothing"
        share = row.trainable_parameters / max(self.total_parameters, 1)
        rates = {f"{rate:.3g}" for rate in row.learning_rates.values()}
        by_stage = " ".join(f"{name}={rate:.3g}" for name, rate in row.learning_rates.items())
        return [
            str(row.epoch) if last == row.epoch else f"{row.epoch}-{last}",
            trains,
            f"{row.trainable_parameters:,} ({share:.1%})",
            row.bn if row.depth else "-",
            f"{row.backward_share:.1%}",
            f"{row.activation_share:.1%}",
            by_stage if len(rates) > 1 else next(iter(rates), "not given"),
        ]


@dataclass(frozen=True)
class PlannedRates:
    """The learning rates of a fit in closed form; see ``ProgressiveUnfreezing`` for the arguments."""

    lr: float | None
    multiplier: Callable[[int], float] | None
    steps_per_epoch: int
    warmup_steps: int
    lr_floor: float
    discriminative: DiscriminativeLR | None

    def at(self, epoch: int, stages: Stages, schedule: FreezingSchedule) -> dict[str, float]:
        """Return the rate of every stage in the first step of an epoch; nothing if the base rate is not known."""
        if self.lr is None:
            return {}
        step = epoch * self.steps_per_epoch
        base = self.lr * (self.multiplier(step) if self.multiplier else 1.0)
        scales = self.discriminative.scales(stages) if self.discriminative else dict.fromkeys(stages.names, 1.0)
        rates: dict[str, float] = {}
        for stage, name in enumerate(stages.names):
            thaw = next((e for e, d in (schedule.transitions(stages) or {}).items() if d <= stage), 0)
            taken = step - thaw * self.steps_per_epoch
            thawed = thaw > 0 and taken >= 0
            warmup = min(1.0, (taken + 1) / (self.warmup_steps + 1)) if thawed else 1.0
            rates[name] = max(base, self.lr * self.lr_floor if thawed else 0.0) * warmup * scales[name]
        return rates


def make_plan(
    root: nn.Module,
    module: nn.Module,
    stages: Stages,
    schedule: FreezingSchedule,
    bn: BnPolicy,
    epochs: int,
    input_size: Sequence[int],
    rates: PlannedRates,
    freeze_from: int | None = None,
) -> Plan:
    """Return the plan of a schedule.

    Args:
        root: The module that holds all parameters.
        module: The staged module in it; it is not changed.
        stages: Its stages.
        schedule: The schedule, checked.
        bn: BatchNorm policy.
        epochs: Number of epochs.
        input_size: Shape of one input, for example (3, 224, 224).
        rates: The learning rates.
        freeze_from: From this stage on all are frozen too; by default none is.
    """
    frozen = FrozenStages(module, stages, bn, freeze_from)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    inside = {id(p) for p in module.parameters()}
    outside = [p for p in root.parameters() if id(p) not in inside]
    depths = [schedule.depth_at(stages, epoch, {}) for epoch in range(epochs)]
    costs = {depth: training_cost(module, stages, depth, bn, input_size, freeze_from) for depth in depths}
    whole = training_cost(module, stages, 0, bn, input_size)

    def row(epoch: int, depth: int) -> PlanRow:
        trainable = [sizes[name] for name in frozen.trainable_at(depth)]
        learning_rates = rates.at(epoch, stages, schedule)
        return PlanRow(
            epoch=epoch,
            depth=depth,
            stages=stages.names[depth:freeze_from],
            trainable_parameters=sum(trainable) + sum(p.numel() for p in outside if p.requires_grad),
            bn=bn,
            learning_rates={
                name: rate for name, rate in learning_rates.items() if name in stages.names[depth:freeze_from]
            },
            backward_share=_share(costs[depth].backward_flops, whole.backward_flops),
            activation_share=_share(costs[depth].activation_bytes, whole.activation_bytes),
        )

    note = "" if schedule.transitions(stages) is not None else f"{schedule.describe(stages)}: thaws depend on training"
    total = sum(sizes.values()) + sum(p.numel() for p in outside)
    return Plan(tuple(row(epoch, depth) for epoch, depth in enumerate(depths)), total, note)


def training_cost(
    module: nn.Module,
    stages: Stages,
    depth: int,
    bn: BnPolicy,
    input_size: Sequence[int],
    freeze_from: int | None = None,
) -> Cost:
    """Return what a training image costs at a freezing depth, from shapes alone: nothing is computed.

    Forward and backward run on meta tensors, with the very freezing code of the fit, under torch's FLOP counter.
    """
    model = _meta_copy(module)
    FrozenStages(model, stages, bn, freeze_from).apply(depth)
    image = torch.empty(_BATCH, *input_size, device="meta")
    kept = _KeptTensors([*model.parameters(), *model.buffers(), image])
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, _unchanged):
        loss = sum(output.float().sum() for output in _tensors(model(image)))
    counter = flop_counter()
    if isinstance(loss, Tensor) and loss.requires_grad:
        with counter:
            loss.backward()
    return Cost(counter.get_total_flops() / _BATCH, kept.bytes / _BATCH)


def _meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy in train mode whose tensors have shapes but no data; no weight is copied."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    model = copy.deepcopy(module, memo)
    for part in model.modules():
        let_go(part)
    return model.train()


class _KeptTensors:
    """Adds up the memory of what autograd keeps, each storage once, without what is there anyway."""

    def __init__(self, there: Sequence[Tensor]) -> None:
        self.bytes = 0
        self._seen = {t.untyped_storage()._cdata for t in there}
        self._alive: list[Tensor] = []  # a freed storage's address could come again

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of a model's output: a tensor, a tuple (auxiliary heads), or a mapping."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
