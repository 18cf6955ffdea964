"""Proof, while training, that what is frozen does not move and what is thawed does train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from tl_lightning.callbacks.checksums import checksums
from tl_lightning.callbacks.stage_callback import callbacks_of, staged_module
from tl_lightning.callbacks.unfreezing import ProgressiveUnfreezing
from tl_lightning.errors import UserError

_HARMLESS = 3  # writes that changed no bit before a tensor is looked at in full checks only (DDP writes buffers anew)


class FreezeAudit(Callback):
    """Raises a RuntimeError, naming the tensor, when freezing did not do what it says.

    After every step it looks at torch's version counters of all frozen parameters and buffers, which notice most
    in-place writes for nothing; every ``every_n_steps`` steps and at the end of every epoch it compares checksums of
    all bits. Noticed are: a frozen tensor that moved; a frozen parameter that something made trainable; a thawed
    parameter that got no gradient in a whole epoch; weights that differ between the ranks of a distributed run.

    What must be frozen is read from ``ProgressiveUnfreezing`` on the same attribute. Without one, it is whatever does
    not require a gradient at the start of an epoch, and the buffers of layers of which no parameter does.

    Args:
        every_n_steps: Optimizer steps between two comparisons of checksums.
        attribute: Name of the trained submodule; ``""`` for the whole LightningModule.
        ignore: Patterns (``aux*``) of parameters that may get no gradient because the model does not use them.
    """

    def __init__(self, *, every_n_steps: int = 100, attribute: str = "backbone", ignore: Sequence[str] = ()) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps must be 1 or more, not {every_n_steps}")
        self.every_n_steps, self.attribute, self.ignore = every_n_steps, attribute, tuple(ignore)
        self._watch = _Watch()
        self._waiting: dict[str, nn.Parameter] = {}  # trainable parameters without a gradient so far in this epoch
        self._place: tuple[int, int | None] | None = None  # epoch and depth that the watch was made for
        self._stepped = False
        self._last_check = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start with nothing known."""
        if stage == "fit":
            self._watch, self._waiting, self._place, self._stepped = _Watch(), {}, None, False
            self._last_check = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch what is frozen from here on."""
        unfreezing = self._unfreezing(trainer)
        place = (trainer.current_epoch, unfreezing.frozen.depth if unfreezing else None)
        if place != self._place:
            self._place, self._stepped = place, False
            module = staged_module(pl_module, self.attribute)
            self._watch = self._watch.renewed(_frozen_tensors(module, unfreezing))
            self._waiting = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Note which parameters got a gradient."""
        self._stepped = True
        if self._waiting:
            self._waiting = {name: p for name, p in self._waiting.items() if p.grad is None}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the version counters, now and then at the bits."""
        if self._unfreezing(trainer) is not None:
            self._fail_if(self._watch.thawed(), "was made trainable: something else sets requires_grad", trainer)
        due = trainer.global_step >= self._last_check + self.every_n_steps
        if due:
            self._last_check = trainer.global_step
        # a write to one is a reason to look at all: running statistics change without a new version
        if self._watch.written() or due:
            self._fail_if(self._watch.moved(), "changed", trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare all bits with those at the start, and between ranks."""
        if self._place is None:
            return
        module = staged_module(pl_module, self.attribute)
        self._watch.follow(_frozen_tensors(module, self._unfreezing(trainer)))
        self._fail_if(self._watch.moved(), "changed", trainer)
        self._check_gradients(trainer)
        if trainer.world_size > 1:
            self._compare_ranks(trainer, pl_module)

    def _check_gradients(self, trainer: pl.Trainer) -> None:
        unused = [n for n in self._waiting if not any(fnmatch(n, pattern) for pattern in self.ignore)]
        if self._stepped and unused:
            more = f" (and {len(unused) - 1} more)" if len(unused) > 1 else ""
            raise RuntimeError(
                f"FreezeAudit: {self._full(unused[0])!r}{more} is thawed but got no gradient in epoch "
                f"{trainer.current_epoch}: the graph is cut before it, or the model does not use it (then name it in "
                "FreezeAudit(ignore=...))"
            )

    def _compare_ranks(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the frozen depth first: where it differs, the lists of tensors do too."""
        device = trainer.strategy.root_device
        depth = torch.tensor([-1 if self._place is None or self._place[1] is None else self._place[1]], device=device)
        if _differing(trainer, depth):
            raise RuntimeError(f"FreezeAudit: the ranks froze different stages in epoch {trainer.current_epoch}")
        tensors = {n: p.detach() for n, p in pl_module.named_parameters()}
        tensors |= {self._full(n): t for n, t in self._watch.tensors.items()}
        differing = _differing(trainer, checksums(tensors.values()).to(device))
        if differing:
            name = list(tensors)[differing[0]]
            raise RuntimeError(
                f"FreezeAudit: {name!r} differs between the ranks after epoch {trainer.current_epoch} "
                f"({len(differing)} of {len(tensors)} tensors do)"
            )

    def _fail_if(self, names: list[str], what: str, trainer: pl.Trainer) -> None:
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            kind = "parameter" if isinstance(self._watch.tensors[names[0]], nn.Parameter) else "buffer"
            raise RuntimeError(
                f"FreezeAudit: frozen {kind} {self._full(names[0])!r}{more} {what} "
                f"by step {trainer.global_step}, epoch {trainer.current_epoch}"
            )

    def _full(self, name: str) -> str:
        return f"{self.attribute}.{name}".lstrip(".")

    def _unfreezing(self, trainer: pl.Trainer) -> ProgressiveUnfreezing | None:
        for callback in callbacks_of(trainer):
            if isinstance(callback, ProgressiveUnfreezing) and callback.attribute == self.attribute:
                return callback
        return None


@dataclass
class _Watch:
    """The frozen tensors by name, with the version counters and checksums they must keep."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    versions: list[int] = field(default_factory=list)
    sums: dict[str, int] = field(default_factory=dict)
    harmless: dict[str, int] = field(default_factory=dict)

    def renewed(self, tensors: dict[str, Tensor]) -> _Watch:
        """Return the watch over another set of tensors; checksums known for them stay valid."""
        new = [name for name in tensors if name not in self.sums]
        sums = {name: self.sums[name] for name in tensors if name in self.sums}
        sums |= zip(new, checksums(tensors[name] for name in new).tolist(), strict=True)
        return _Watch(tensors, [t._version for t in tensors.values()], sums, self.harmless)

    def follow(self, tensors: dict[str, Tensor]) -> None:
        """Look at the tensors that now have these names: a layer may have got new ones."""
        self.tensors = {name: tensors.get(name, tensor) for name, tensor in self.tensors.items()}
        self.versions = [t._version for t in self.tensors.values()]

    def thawed(self) -> list[str]:
        """Return the names of tensors that require a gradient."""
        return [name for name, tensor in self.tensors.items() if tensor.requires_grad]

    def written(self) -> bool:
        """Whether a tensor was written to since the last call for which that is unusual."""
        versions = [t._version for t in self.tensors.values()]
        if versions == self.versions:
            return False
        pairs = zip(self.tensors, versions, self.versions, strict=True)
        names = [name for name, now, before in pairs if now != before]
        self.versions = versions
        for name in names:
            self.harmless[name] = self.harmless.get(name, 0) + 1
        return any(self.harmless[name] <= _HARMLESS for name in names)

    def moved(self) -> list[str]:
        """Return the names of tensors whose bits are not what they were."""
        now = checksums(self.tensors.values()).tolist()
        return [name for name, value in zip(self.tensors, now, strict=True) if value != self.sums[name]]


def _frozen_tensors(module: nn.Module, unfreezing: ProgressiveUnfreezing | None) -> dict[str, Tensor]:
    """Return what must not move: what the schedule freezes, and what else does not train."""
    frozen: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    if unfreezing is not None:
        return {**frozen, **unfreezing.frozen.parameters(), **unfreezing.frozen.buffers()}
    for path, layer in module.named_modules():
        own = list(layer.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            frozen |= {f"{path}.{name}".lstrip("."): b for name, b in layer.named_buffers(recurse=False)}
    return frozen


def _differing(trainer: pl.Trainer, values: Tensor) -> list[int]:
    """Return the positions at which the values of the ranks differ."""
    gathered = trainer.strategy.all_gather(values).reshape(trainer.world_size, -1)
    return torch.nonzero((gathered != gathered[0]).any(dim=0)).flatten().tolist()
