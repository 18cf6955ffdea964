"""How a list of modules that the user gives becomes stages that cover every tensor once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tl_lightning.backbones.partition import Partition, owns
from tl_lightning.errors import UserError, unknown_name


def partition_by_modules(model: nn.Module, names: Sequence[str]) -> Partition:
    """Make a stage of every named module (or parameter); the longest of the names that hold a tensor decides."""
    modules = dict(model.named_modules())
    known = [n for n in [*modules, *(n for n, _ in model.named_parameters())] if n]
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in known:
            raise unknown_name("module", name, known)
    if not names or len(set(names)) < len(names):
        raise UserError(f"stages need at least one module, each named once: got {', '.join(names) or 'none'}")
    order = {name: k for k, name in enumerate(names)}
    parameters = _covered(order, list(model.named_parameters(remove_duplicate=False)))
    buffers = _covered(order, list(model.named_buffers(remove_duplicate=False)))
    spans: dict[str, tuple[int, int]] = {}
    for path in modules:
        below = [k for n, k in order.items() if owns(path, n)] + _nearest(path, order)
        spans[path] = (min(below), max(below)) if below else (spans[path.rpartition(".")[0]][1],) * 2
    return Partition(tuple(names), (), (), {}, parameters, buffers, spans)


def _nearest(path: str, order: dict[str, int]) -> list[int]:
    owners = [name for name in order if owns(name, path)]
    return [order[max(owners, key=len)]] if owners else []


def _covered(order: dict[str, int], tensors: list[tuple[str, object]]) -> dict[str, int]:
    """Return the earliest stage of each tensor, by the first of its names."""
    first_name: dict[int, str] = {}
    stages: dict[str, int] = {}
    for name, tensor in tensors:
        canonical = first_name.setdefault(id(tensor), name)
        found = _nearest(name, order)
        if found:
            stages[canonical] = min(found[0], stages.get(canonical, found[0]))
    missing = [name for name in first_name.values() if name not in stages]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(f"the stages do not cover {shown}: name the modules that hold them as well")
    return {name: stages[name] for name in first_name.values()}
