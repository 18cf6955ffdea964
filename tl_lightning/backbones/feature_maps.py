"""Find the feature maps of any model: at which nodes of its graph they lie, their strides and channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tl_lightning.backbones.graph import TracedGraph, graph_module
from tl_lightning.backbones.partition import classifier_node
from tl_lightning.errors import UserError

_PROBES = ((256, 384), (224, 224))  # height and width; the second for models that take only ImageNet's square
_STRIDES = (1, 2, 4, 8, 16, 32, 64)
_LAYER_SHARE = 0.5  # share of the layers that must lie before the deepest map


@dataclass(frozen=True)
class FeatureMap:
    """A node of the graph whose value is a feature map.

    Attributes:
        name: Qualified name of the node, a boundary of the model.
        position: Its index among the nodes of the graph.
        stride: Pixels of the image for one of the map, rounded to a power of two.
        channels: Number of channels.
        channels_last: Whether the node's value is [B, H, W, C], as in Swin.
    """

    name: str
    position: int
    stride: int
    channels: int
    channels_last: bool


def find_feature_maps(model: nn.Module, traced: TracedGraph) -> dict[int, FeatureMap]:
    """Return the last feature map at every stride, shallow to deep.

    Only boundaries count (all that is deeper depends on the map alone), and of these the outputs of whole blocks:
    the widened map inside of an inverted residual block that then shrinks it is left out. The classifier is left out
    where it is a 1x1 convolution, as in SqueezeNet.

    Args:
        model: A classification model; it is not changed and nothing is computed, only shapes are.
        traced: Its graph.

    Raises:
        UserError: The model has no feature maps, or keeps them in its first layers alone (as ViT does).
    """
    probe, shapes = node_shapes(model, traced)
    end = _classifier_start(model, traced)
    bounds = [i for i in traced.boundary_positions() if i < end]
    maps = {i: found for i in bounds if (found := as_feature_map(traced.names[i], i, shapes, probe))}
    chosen: dict[int, FeatureMap] = {}
    for stride in _STRIDES:
        deeper = min((i for i, m in maps.items() if m.stride > stride), default=None)
        candidates = [m for i, m in maps.items() if m.stride == stride and (deeper is None or i < deeper)]
        if candidates:
            chosen[stride] = _outermost(candidates, traced, deeper)
    _check_depth(model, traced, chosen)
    return chosen


def node_shapes(model: nn.Module, traced: TracedGraph) -> tuple[tuple[int, int], dict[int, tuple[int, ...]]]:
    """Return the size of an image that the model takes and the shape of every node's value for it (batch of 2).

    Raises:
        UserError: The model takes none of the sizes tried.
    """
    runner = _ShapeRunner(graph_module(model, traced.graph, traced.constants))
    tensors = {name: tensor.to("meta") for name, tensor in [*runner.named_parameters(), *runner.named_buffers()]}
    reason: Exception | None = None
    with _eval_mode(runner):
        for size in _PROBES:
            try:
                torch.func.functional_call(runner, tensors, (torch.empty(2, 3, *size, device="meta"),))
            except Exception as error:
                reason = error
                continue
            index = {node.name: i for i, node in enumerate(traced.nodes)}
            return size, {index[name]: shape for name, shape in runner.shapes.items() if name in index}
    raise UserError(f"{type(model).__name__} takes images of neither 256x384 nor 224x224 pixels: {reason}")


class _ShapeRunner(nn.Module):
    """Runs a graph and notes the shape of every node's value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.module = module
        self.shapes: dict[str, tuple[int, ...]] = {}

    def forward(self, x: Tensor) -> None:
        interpreter = _ShapeInterpreter(self.module)
        interpreter.run(x)
        self.shapes = interpreter.shapes


class _ShapeInterpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, flag in flags:
            part.training = flag


def as_feature_map(
    name: str, position: int, shapes: dict[int, tuple[int, ...]], probe: tuple[int, int]
) -> FeatureMap | None:
    """Return a node's value as a feature map of the probe image, or None where it is none."""
    shape = shapes.get(position, ())
    if len(shape) != 4:
        return None
    for channels_last, size, channels in ((False, shape[2:], shape[1]), (True, shape[1:3], shape[3])):
        stride = _stride(probe, size)
        if stride is not None:
            return FeatureMap(name, position, stride, channels, channels_last)
    return None


def _stride(probe: tuple[int, int], size: tuple[int, ...]) -> int | None:
    """Return the power of two nearest to the stride, if it is the same for height and width."""
    exponents = {round(math.log2(whole / part)) for whole, part in zip(probe, size, strict=True) if part}
    stride = 2 ** exponents.pop() if len(exponents) == 1 else 0
    return stride if stride in _STRIDES else None


def _classifier_start(model: nn.Module, traced: TracedGraph) -> int:
    """Return the index of a classifier that is a 1x1 convolution, else the number of nodes."""
    position = classifier_node(model, traced)
    layer = model.get_submodule(str(traced.nodes[position].target))
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.bias is not None:
        return position
    return len(traced.nodes)


def _outermost(candidates: list[FeatureMap], traced: TracedGraph, deeper: int | None) -> FeatureMap:
    """Return the last of the maps that share the fewest enclosing modules with the node that shrinks them."""
    if deeper is None:
        return candidates[-1]
    target = traced.paths[deeper].split(".")

    def shared(found: FeatureMap) -> int:
        path = traced.paths[found.position].split(".")
        same = [a == b for a, b in zip(path, target, strict=False)]
        return same.index(False) if False in same else len(same)

    fewest = min(shared(found) for found in candidates)
    return [found for found in candidates if shared(found) == fewest][-1]


def _check_depth(model: nn.Module, traced: TracedGraph, chosen: dict[int, FeatureMap]) -> None:
    last = max((found.position for found in chosen.values()), default=-1)
    layers = [i for i, node in enumerate(traced.nodes) if node.op == "call_module" and _has_weight(model, node)]
    if sum(i <= last for i in layers) < _LAYER_SHARE * len(layers):
        raise UserError(
            f"{type(model).__name__} keeps tokens and no feature maps, which detection and segmentation need: "
            "choose a convolutional network, swin_* or maxvit_t"
        )


def _has_weight(model: nn.Module, node: fx.Node) -> bool:
    return any(p.ndim > 1 for p in model.get_submodule(str(node.target)).parameters())
