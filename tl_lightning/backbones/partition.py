"""How the nodes of a traced model become stages that cover every tensor once."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import fx, nn

from tl_lightning.backbones.graph import Boundary, TracedGraph
from tl_lightning.errors import UserError

_SPINE_SHARE = 0.8  # share of the layers outside the classifier that a container holds when it is worth descending


@dataclass(frozen=True)
class Partition:
    """The stages of a model.

    Attributes:
        names: Stage names, shallow to deep; the head last.
        boundaries: All boundaries of the model.
        ends: For each stage but the head, the position of the boundary at which it ends.
        boundary_stage: The stage in which each boundary lies, by name.
        parameters: The stage of each parameter.
        buffers: The stage of each buffer.
        spans: The first and the last stage that use each module.
    """

    names: tuple[str, ...]
    boundaries: tuple[Boundary, ...]
    ends: tuple[int, ...]
    boundary_stage: dict[str, int]
    parameters: dict[str, int]
    buffers: dict[str, int]
    spans: dict[str, tuple[int, int]]


@dataclass
class _Depth:
    """What the nodes of a graph use: everything that the rules below ask for."""

    model: nn.Module
    traced: TracedGraph
    weighty: dict[int, str] = field(default_factory=dict)  # node: the layer with a weight (no norm) it is first to use
    bounds: list[int] = field(default_factory=list)
    head_node: int = 0
    spine: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        nodes = self.traced.nodes
        self.bounds = self.traced.boundary_positions()
        for i, node in enumerate(nodes):
            layer = self._weight_layer(node)
            if layer is not None and layer not in self.weighty.values():
                self.weighty[i] = layer
        self.head_node = classifier_node(self.model, self.traced)
        self.spine = self._find_spine()

    def _weight_layer(self, node: fx.Node) -> str | None:
        """Return the layer whose weight a node uses: by calling it, or by reading the weight for a functional call."""
        if node.op == "call_module":
            path = str(node.target)
            return path if any(p.ndim > 1 for p in self.model.get_submodule(path).parameters()) else None
        if node.op == "get_attr" and node.target not in self.traced.constants:
            path, _, attribute = str(node.target).rpartition(".")
            owner = self.model.get_submodule(path)
            is_layer = path and next(owner.children(), None) is None
            return path if is_layer and getattr(owner, attribute).ndim > 1 else None
        return None

    def _find_spine(self) -> list[str]:
        """Return the path of the container whose children are the stages (empty: the model itself)."""
        paths = set(self.weighty.values())
        head = self.traced.paths[self.head_node].split(".")
        spine: list[str] = []
        while True:
            level = len(spine)
            inside = [p.split(".") for p in paths if p.split(".")[:level] == spine and p.split(".") != head]
            counts = Counter(p[level] for p in inside if len(p) > level + 1)
            in_head = counts.get(head[level], 0) if head[:level] == spine and len(head) > level + 1 else 0
            total = len(inside)
            if in_head < _SPINE_SHARE * total:
                total -= in_head
                counts.pop(head[level] if in_head else "", None)
            child, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
            if not count or count < _SPINE_SHARE * total:
                return spine
            spine = [*spine, child]

    def label(self, path: str) -> str:
        """Return the stage that people would name for a path: the child of the spine, or of what leads to it."""
        parts = path.split(".")
        shared = 0
        while shared < min(len(parts), len(self.spine)) and parts[shared] == self.spine[shared]:
            shared += 1
        return ".".join(parts[: shared + 1])

    def head_start(self) -> int:
        """Return the index of the last boundary before the head and the dropout that feeds it, or -1."""
        start = self.head_node
        while start > 0 and self._is_dropout(self.traced.nodes[start - 1]):
            start -= 1
        return max((b for b in self.bounds if b < start), default=-1)

    def _is_dropout(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return "Dropout" in type(self.model.get_submodule(str(node.target))).__name__
        return node.op == "call_function" and "dropout" in getattr(node.target, "__name__", "")


def classifier_node(model: nn.Module, traced: TracedGraph) -> int:
    """Return the index of the node that calls the classifier: the last linear or convolution layer."""
    called = [(i, model.get_submodule(str(n.target))) for i, n in enumerate(traced.nodes) if n.op == "call_module"]
    weighted = [(i, m) for i, m in called if any(p.ndim > 1 for p in m.parameters())]
    plain = [i for i, m in weighted if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    if not weighted:
        raise UserError(f"{type(model).__name__} calls no layer with a weight: it has no head that could be told")
    return (plain or [i for i, _ in weighted])[-1]


def partition_by_graph(model: nn.Module, traced: TracedGraph, granularity: Literal["module", "boundary"]) -> Partition:
    """Cut the graph at boundaries into stages; see ``Stages`` for the rules."""
    depth = _Depth(model, traced)
    cuts = depth.bounds if granularity == "boundary" else _module_cuts(depth)
    cuts = _merge_weightless(depth, [c for c in cuts if c <= depth.head_start()])
    stage = [bisect.bisect_left(cuts, i) for i in _first_uses(traced)]
    names = (_module_names if granularity == "module" else _boundary_names)(depth, stage)
    parameters, buffers = _tensor_stages(depth, stage)
    boundaries = tuple(Boundary(traced.names[i], k) for k, i in enumerate(depth.bounds))
    whole = traced.headless and granularity == "module"
    last = depth.label(traced.paths[depth.head_node]) if whole else _head_stage_name(depth, names)
    return Partition(
        names=(*names, last),
        boundaries=boundaries,
        ends=tuple(depth.bounds.index(c) for c in cuts),
        boundary_stage={b.name: stage[i] for b, i in zip(boundaries, depth.bounds, strict=True)},
        parameters=parameters,
        buffers=buffers,
        spans=_module_spans(depth, stage),
    )


def _first_uses(traced: TracedGraph) -> list[int]:
    """Return where each node acts: at its own place, or for a parameter that is read, where it is used first."""
    index = {node: i for i, node in enumerate(traced.nodes)}
    reads = {n: min((index.get(u, i) for u in n.users), default=i) for n, i in index.items() if n.op == "get_attr"}
    return [reads.get(node, i) for node, i in index.items()]


def owns(path: str, other: str) -> bool:
    """Tell whether a path is another one or leads to it; the empty path leads everywhere."""
    return not path or other == path or other.startswith(f"{path}.")


def _module_cuts(depth: _Depth) -> list[int]:
    """Return the last boundary of every run of nodes that share a label."""
    spine = ".".join(depth.spine)
    cuts: list[int] = []
    current = ""
    for i, (node, path) in enumerate(zip(depth.traced.nodes, depth.traced.paths, strict=True)):
        on_spine = node.op not in ("call_module", "get_attr") and owns(path, spine)
        label = current if on_spine else depth.label(path)
        if label != current and i:
            cuts += [b for b in depth.bounds if b < i][-1:]
        current = label
    if not depth.traced.headless:
        cuts.append(depth.head_start())
    return sorted({*cuts} - {-1})


def _merge_weightless(depth: _Depth, cuts: list[int]) -> list[int]:
    """Merge a stage without a weight (norms, pooling, position embeddings) into the one before."""
    kept: list[int] = []
    for cut in cuts:
        start = kept[-1] if kept else -1
        if any(start < i <= cut for i in depth.weighty):
            kept.append(cut)
        elif kept:
            kept[-1] = cut
    return kept


def _weights_by_stage(depth: _Depth, stage: list[int]) -> list[list[str]]:
    """Return the paths of the layers with a weight in every stage but the head, in order."""
    found: list[list[str]] = [[] for _ in range(stage[-1])]
    for i, layer in depth.weighty.items():
        if stage[i] < stage[-1]:
            found[stage[i]].append(layer)
    return found


def _module_names(depth: _Depth, stage: list[int]) -> list[str]:
    names: list[str] = []
    for paths in _weights_by_stage(depth, stage):
        labels = [depth.label(path) for path in paths]
        names.append(next(name for name in [*labels, *paths] if name not in names))
    return names


def _boundary_names(depth: _Depth, stage: list[int]) -> list[str]:
    """Name a stage after the largest module that holds its layers and lies in it alone."""
    spans = _module_spans(depth, stage)
    names: list[str] = []
    for k, paths in enumerate(_weights_by_stage(depth, stage)):
        owner = _common_owner(paths)
        if spans.get(owner) != (k, k):
            owner = next(path for path in paths if path not in names)
        while spans.get(owner.rpartition(".")[0]) == (k, k):
            owner = owner.rpartition(".")[0]
        names.append(owner)
    return names


def _common_owner(paths: list[str]) -> str:
    common: list[str] = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _head_stage_name(depth: _Depth, names: Sequence[str]) -> str:
    """Return the shortest path, from the label on, that holds the head and nothing else."""
    path = depth.traced.paths[depth.head_node]
    first = len(depth.label(path).split("."))
    parts = path.split(".")
    inside = [layer for i, layer in depth.weighty.items() if i != depth.head_node]
    for length in range(first, len(parts)):
        candidate = ".".join(parts[:length])
        if candidate not in names and not any(owns(candidate, other) for other in inside):
            return candidate
    return path


def _tensor_stages(depth: _Depth, stage: list[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the stage of the earliest use of every parameter and of every buffer."""
    used: dict[int, int] = {}
    for node, k in zip(depth.traced.nodes, stage, strict=True):
        target = str(node.target)
        if node.op == "call_module":
            module = depth.model.get_submodule(target)
            for tensor in [*module.parameters(), *module.buffers()]:
                used.setdefault(id(tensor), k)
        elif node.op == "get_attr" and target not in depth.traced.constants:
            owner, _, attribute = target.rpartition(".")
            used.setdefault(id(getattr(depth.model.get_submodule(owner), attribute)), k)
    head = stage[-1]
    parameters = {name: used.get(id(p), head) for name, p in depth.model.named_parameters()}
    buffers = {name: used.get(id(b), head) for name, b in depth.model.named_buffers()}
    return parameters, buffers


def _module_spans(depth: _Depth, stage: list[int]) -> dict[str, tuple[int, int]]:
    """Return the first and the last stage that use each module; what the graph does not use is in the head.

    A layer with tensors counts for the stage of its earliest use, as they do.
    """
    spans: dict[str, tuple[int, int]] = {}
    called = {str(n.target) for n in depth.traced.nodes if n.op == "call_module"}
    for node, path, k in zip(depth.traced.nodes, depth.traced.paths, stage, strict=True):
        if node.op == "placeholder":
            continue
        while True:
            first, last = spans.get(path, (k, k))
            spans[path] = (min(first, k), max(last, k))
            if not path:
                break
            path = path.rpartition(".")[0]
    result: dict[str, tuple[int, int]] = {}
    for name, module in depth.model.named_modules():
        owner = name
        while owner not in spans:
            owner = owner.rpartition(".")[0]
        first, last = spans[owner]
        has_state = any(True for _ in [*module.parameters(), *module.buffers()])
        if name in called and has_state:
            last = first  # used in several stages: its mode must not change what its tensors, of the first, are
        elif owner != name and owner not in called:
            first = last = stage[-1] if has_state else last
        result[name] = (first, last)
    return result
