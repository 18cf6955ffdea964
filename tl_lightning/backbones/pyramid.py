"""A backbone for dense tasks: any model without its classifier, with its feature maps at several strides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from tl_lightning.backbones.feature_maps import FeatureMap, find_feature_maps
from tl_lightning.backbones.graph import TracedGraph, graph_module, trace
from tl_lightning.backbones.stored_graph import StoredGraph
from tl_lightning.errors import UserError


class FeatureBackbone(nn.Module):
    """The part of a model up to its deepest feature map.

    ``pyramid(image)`` returns the maps by stride, ``forward(image)`` the deepest one alone: one tensor in, one
    tensor out, so that ``Stages`` orders and groups it as it does the whole model, by the same names. Layers, and
    their names in the state dict, are those of the model (shared, not copied); what only the classifier needs is
    left out.

    The maps are those at the last node of each stride (see ``find_feature_maps``), always [B, C, H, W].

    Args:
        model: A classification model, for example from ``create_backbone``.
        strides: Strides of the maps that are wanted; those that the model does not have are left out. By default all.

    Attributes:
        maps: Where each map lies, shallow to deep.

    Raises:
        UserError: The model cannot be traced, has no feature maps, or none at the strides wanted.
    """

    maps: tuple[FeatureMap, ...]

    def __init__(self, model: nn.Module, strides: Sequence[int] | None = None) -> None:
        super().__init__()
        in_eval, in_training = trace(model), trace(model, training=True)
        found = find_feature_maps(model, in_eval)
        self.maps = tuple(m for stride, m in found.items() if strides is None or stride in strides)
        if not self.maps:
            raise UserError(
                f"{type(model).__name__} has no feature maps at strides {', '.join(map(str, strides or ()))}: "
                f"it has them at {', '.join(map(str, found))}"
            )
        ends = [m.name for m in self.maps]
        self._graphs = (StoredGraph.of(in_eval, ends), StoredGraph.of(in_training, ends))
        self._constants = tuple(in_eval.constants)
        self._adopt(graph_module(model, self._running_graph(self._graphs[0]), in_eval.constants))
        self._compile()

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of every map, shallow to deep."""
        return tuple(m.stride for m in self.maps)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every map, shallow to deep."""
        return tuple(m.channels for m in self.maps)

    def pyramid(self, image: Tensor) -> dict[int, Tensor]:
        """Return the maps [B, C, H / stride, W / stride] of images [B, 3, H, W], by stride."""
        maps = self._runs[self.training](self, image)
        return dict(zip(self.strides, maps, strict=True))

    def forward(self, image: Tensor) -> Tensor:
        """Return the deepest map of images [B, 3, H, W]."""
        return self.pyramid(image)[self.strides[-1]]

    def traced(self, training: bool) -> TracedGraph:
        """Return the graph of ``forward`` with the names that the nodes have in the model."""
        stored, deepest = self._graphs[training], self.maps[-1]
        graph, nodes = stored.graph(lambda graph, node: _channels_first(graph, node[deepest.name], deepest))
        constants = {name: getattr(self, name) for name in self._constants}
        names, paths = list(stored.names), list(stored.paths)
        if deepest.channels_last:
            nodes.append(nodes[-1].next)
            names.append(f"{deepest.name}.permute")
            paths.append("")
        return TracedGraph(graph, nodes, names, paths, constants, headless=True)

    def _adopt(self, used: fx.GraphModule) -> None:
        """Register the layers, parameters and buffers that the graph uses."""
        for name, child in used.named_children():
            self.add_module(name, child)
        for name, parameter in used.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in used.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in self._constants)

    def _running_graph(self, stored: StoredGraph) -> fx.Graph:
        return stored.graph(lambda graph, node: tuple(_channels_first(graph, node[m.name], m) for m in self.maps))[0]

    def _compile(self) -> None:
        """Make functions of the graphs, which find layers in this module by the names they had in the model."""
        self._runs: tuple[Callable[..., Any], ...] = tuple(
            fx.GraphModule(self, self._running_graph(stored)).forward.__func__  # type: ignore[attr-defined]
            for stored in self._graphs
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_runs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compile()


def _channels_first(graph: fx.Graph, node: fx.Node, found: FeatureMap) -> fx.Node:
    return graph.call_method("permute", (node, 0, 3, 1, 2)) if found.channels_last else node
