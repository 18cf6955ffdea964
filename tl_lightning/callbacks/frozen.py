"""What frozen means: no gradient, no step, no decay, layers in eval mode, buffers untouched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl_lightning.backbones import Stages

BnPolicy = Literal["eval", "affine_only", "recalibrate", "train"]


class StayInEval:
    """Stands in for ``module.train`` while the module is frozen, so that no call of ``train()`` wakes it.

    A class and not a bound function, so that a frozen module can be copied and pickled: the copy stays frozen.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.mode_before = module, module.training

    def __call__(self, mode: bool = True) -> nn.Module:
        """Keep the module in eval mode; its children decide for themselves."""
        self.module.training = False
        for child in self.module.children():
            child.train(mode)
        return self.module


def hold_in_eval(module: nn.Module) -> None:
    """Put one module (not its children) in eval mode, for good."""
    if not isinstance(vars(module).get("train"), StayInEval):
        vars(module)["train"] = StayInEval(module)
    module.training = False


def let_go(module: nn.Module) -> None:
    """Undo ``hold_in_eval``: the module gets the mode back that it had."""
    held = vars(module).get("train")
    if isinstance(held, StayInEval):
        del vars(module)["train"]
        module.training = held.mode_before


class FrozenStages:
    """Freezes the shallowest stages of a module, if wanted the deepest too, and gives them back as they were.

    Parameters that do not require a gradient when this is made are left alone for good: somebody else froze them.
    All tensors and modules are looked up by name whenever the depth changes, so that layers that were replaced in
    between (SyncBatchNorm) are frozen too.

    Args:
        module: The staged module.
        stages: Its stages.
        bn: What BatchNorm layers of frozen stages do. ``"eval"`` (and ``"recalibrate"``, once its statistics are
            there): frozen like all else. ``"affine_only"``: scale and shift train, statistics are frozen. ``"train"``:
            scale and shift train and statistics follow the batches.
        freeze_from: From this stage on all are frozen too; gradients pass through them. By default none is.
    """

    def __init__(
        self, module: nn.Module, stages: Stages, bn: BnPolicy = "eval", freeze_from: int | None = None
    ) -> None:
        self.module, self.stages, self.bn = module, stages, bn
        self.freeze_from = len(stages) if freeze_from is None else freeze_from
        self.depth: int | None = None
        self._trainable = {name for name, p in module.named_parameters() if p.requires_grad}

    def apply(self, depth: int) -> None:
        """Freeze the first ``depth`` stages and thaw all others."""
        self.depth = depth
        frozen = self.parameters()
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in self._trainable and name not in frozen)
            if not parameter.requires_grad:
                parameter.grad = None
        held = dict(self._held_modules(depth))
        for name, module in self.module.named_modules():
            (hold_in_eval if name in held else let_go)(module)

    def release(self) -> None:
        """Give everything back as it was before the first ``apply``."""
        self.depth = None
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        for module in self.module.modules():
            let_go(module)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are frozen at the present depth, by name."""
        stage = self.stages.parameter_stage()
        exempt = self._affine_names()
        frozen = {name for name, s in stage.items() if self._is_frozen(s) and name not in exempt}
        return {name: p for name, p in self.module.named_parameters() if name in frozen}

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers that must not change at the present depth, by name."""
        stage = self.stages.buffer_stage()
        exempt = {f"{path}." for path, _ in self.batch_norms()} if self.bn == "train" else set()
        frozen = {name for name, s in stage.items() if self._is_frozen(s)}
        return {
            name: b
            for name, b in self.module.named_buffers()
            if name in frozen and name[: name.rfind(".") + 1] not in exempt
        }

    def batch_norms(self, depth: int | None = None) -> Iterator[tuple[str, _BatchNorm]]:
        """Yield the BatchNorm layers that are frozen at a depth (by default the present one), by name."""
        for name, module in self._frozen_modules(depth if depth is not None else self.depth or 0):
            if isinstance(module, _BatchNorm):
                yield name, module

    def trainable_at(self, depth: int) -> list[str]:
        """Return the names of the parameters that train at a depth."""
        stage, exempt = self.stages.parameter_stage(), self._affine_names()
        trains = {name for name, s in stage.items() if not self._is_frozen(s, depth)} | exempt
        return [name for name in stage if name in self._trainable & trains]

    def _is_frozen(self, stage: int, depth: int | None = None) -> bool:
        """Return whether a stage is frozen at a depth (by default the present one; nothing is before the first)."""
        depth = self.depth if depth is None else depth
        return depth is not None and not depth <= stage < self.freeze_from

    def _affine_names(self) -> set[str]:
        """Return the names of the BatchNorm parameters that train in frozen stages too."""
        if self.bn not in ("affine_only", "train"):
            return set()
        norms = [(n, m) for n, m in self.module.named_modules() if isinstance(m, _BatchNorm)]
        return {f"{n}.{p}".lstrip(".") for n, m in norms for p, _ in m.named_parameters(recurse=False)}

    def _held_modules(self, depth: int) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self._frozen_modules(depth):
            if not (self.bn == "train" and isinstance(module, _BatchNorm)):
                yield name, module

    def _frozen_modules(self, depth: int) -> Iterator[tuple[str, nn.Module]]:
        """Yield every module that is frozen at a depth: by the last stage that it computes in."""
        stage, tensors = self.stages.module_stage(), {**self.stages.buffer_stage(), **self.stages.parameter_stage()}
        for name, module in self.module.named_modules():
            owner = name
            while owner not in stage:  # a module made after the stages were, inside one that they know
                owner = owner.rpartition(".")[0]
            if isinstance(module, _BatchNorm):  # used at several depths, it is frozen with its tensors: the earliest
                own = [tensors[n] for n in _own_tensors(name, module) if n in tensors]
                if self._is_frozen(min([*own, stage[owner]]), depth):
                    yield name, module
            elif self._is_frozen(stage[owner], depth):
                yield name, module


def _own_tensors(path: str, module: nn.Module) -> list[str]:
    names = [n for n, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]]
    return [f"{path}.{n}".lstrip(".") for n in names]
