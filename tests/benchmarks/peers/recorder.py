"""Takes down what a step of training really had: which parameters trained, in which mode, at which rate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Snapshot:
    """The state in one step, after the backward pass and before the update.

    Attributes:
        epoch: Epoch from 0.
        step: Batch of the epoch, from 0.
        trainable: Parameters that require a gradient.
        with_gradient: Parameters that have one which is not 0 throughout.
        normalising_by_batch: BatchNorm layers that normalise by the statistics of the batch.
        rates: Learning rate of every parameter that the optimizer holds.
        weights: All parameters.
    """

    epoch: int
    step: int
    trainable: frozenset[str]
    with_gradient: frozenset[str]
    normalising_by_batch: frozenset[str]
    rates: dict[str, float]
    weights: dict[str, Tensor]

    def differences(self, other: Snapshot) -> list[str]:
        """Name what differs from another run's snapshot of the same step."""
        found = []
        if self.trainable != other.trainable:
            found.append("requires_grad")
        if self.normalising_by_batch != other.normalising_by_batch:
            found.append("BN mode")
        mine = {n: self.rates.get(n, 0.0) for n in self.trainable}
        theirs = {n: other.rates.get(n, 0.0) for n in other.trainable}
        if mine.keys() == theirs.keys() and any(abs(mine[n] - theirs[n]) > 1e-9 * abs(theirs[n]) for n in mine):
            found.append("rates")
        return found


@dataclass
class Recorder:
    """Collects the snapshots of a fit, and at its start the optimizer's first moments by parameter name."""

    snapshots: list[Snapshot] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    first_moments: dict[str, Tensor] = field(default_factory=dict)
    last_moments: dict[str, Tensor] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)

    def step(self, network: nn.Module, rates: Mapping[str, float], epoch: int, step: int) -> None:
        """Take down a step; call it between the backward pass and the update."""
        named = dict(network.named_parameters())
        batch = frozenset(n for n, m in network.named_modules() if isinstance(m, _BatchNorm) and _by_batch(m))
        self.snapshots.append(
            Snapshot(
                epoch,
                step,
                frozenset(n for n, p in named.items() if p.requires_grad),
                frozenset(n for n, p in named.items() if p.grad is not None and bool(p.grad.any())),
                batch,
                dict(rates),
                {n: p.detach().clone() for n, p in named.items()},
            )
        )

    def epoch_end(self, network: nn.Module) -> None:
        """Take down a checksum of all parameters and buffers that training changes."""
        self.digests.append(digest(network))

    def at(self, epoch: int, step: int = 0) -> Snapshot:
        """Return the snapshot of a step."""
        return next(s for s in self.snapshots if (s.epoch, s.step) == (epoch, step))

    def of_epoch(self, epoch: int) -> list[Snapshot]:
        """Return the snapshots of an epoch."""
        return [s for s in self.snapshots if s.epoch == epoch]


def digest(network: nn.Module) -> str:
    """Return a checksum of all parameters."""
    hasher = hashlib.blake2b(digest_size=8)
    for parameter in network.parameters():
        hasher.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that are not bit-identical."""
    return [name for name, t in before.items() if name not in after or not torch.equal(t, after[name])]


def _by_batch(norm: _BatchNorm) -> bool:
    return norm.training or norm.running_mean is None
