"""A graph as plain values, which can be pickled and copied: torch.fx's own linked list recurses too deep for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import fx
from torch.fx.node import map_aggregate

from tl_lightning.backbones.graph import TracedGraph


@dataclass(frozen=True)
class _Result:
    """Stands for the result of an earlier call."""

    position: int


@dataclass(frozen=True)
class _Call:
    """A node; ``wrapped`` marks functions that are not to be traced through."""

    op: str
    target: Any
    args: Any
    kwargs: Any
    wrapped: bool


@dataclass(frozen=True)
class StoredGraph:
    """The part of a traced graph that some of its nodes need.

    Attributes:
        calls: The nodes in the order of execution.
        names: Qualified name of each.
        paths: Path of each, see ``TracedGraph``.
    """

    calls: tuple[_Call, ...]
    names: tuple[str, ...]
    paths: tuple[str, ...]

    @classmethod
    def of(cls, traced: TracedGraph, ends: Sequence[str]) -> StoredGraph:
        """Return what the nodes of the names ``ends`` need, and the inputs."""
        needed = {node for node, name in zip(traced.nodes, traced.names, strict=True) if name in ends}
        for node in reversed(traced.nodes):
            if node in needed or node.op == "placeholder":
                needed.update([node, *node.all_input_nodes])
        kept = [i for i, node in enumerate(traced.nodes) if node in needed]
        position = {traced.nodes[i]: k for k, i in enumerate(kept)}

        def refer(value: Any) -> Any:
            return map_aggregate(value, lambda v: cast(Any, _Result(position[v])) if isinstance(v, fx.Node) else v)

        calls = [
            _Call(n.op, n.target, refer(n.args), refer(n.kwargs), n.meta.get("is_wrapped", False))
            for n in (traced.nodes[i] for i in kept)
        ]
        return cls(tuple(calls), tuple(traced.names[i] for i in kept), tuple(traced.paths[i] for i in kept))

    def graph(self, output: Callable[[fx.Graph, dict[str, fx.Node]], Any]) -> tuple[fx.Graph, list[fx.Node]]:
        """Return the graph and its nodes; ``output`` makes the result of the graph and of its nodes by name."""
        graph = fx.Graph()
        nodes: list[fx.Node] = []

        def resolve(value: Any) -> Any:
            return map_aggregate(value, lambda v: nodes[v.position] if isinstance(v, _Result) else v)

        for call in self.calls:
            node = graph.create_node(call.op, call.target, resolve(call.args), resolve(call.kwargs))
            node.meta["is_wrapped"] = call.wrapped
            nodes.append(node)
        graph.output(output(graph, dict(zip(self.names, nodes, strict=True))))
        return graph, nodes
