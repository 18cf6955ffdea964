"""Give the deep maps of a network a finer stride: dilated convolutions in place of strided ones (Chen et al. 2017)."""

from __future__ import annotations

from torch import fx, nn

from tl_lightning.backbones.feature_maps import FeatureMap, as_feature_map, node_shapes
from tl_lightning.backbones.graph import trace
from tl_lightning.errors import UserError

_Shapes = dict[fx.Node, tuple[int, ...]]


def limit_stride(model: nn.Module, output_stride: int) -> None:
    """Change a model in place so that no feature map has a larger stride.

    Strided convolutions beyond it get stride 1, and those behind them a dilation that keeps what they see; weights
    stay as they are. As torchvision does for DeepLabV3 (arXiv 1706.05587), for any model whose deep maps are
    shrunk by convolutions of odd size alone.

    Args:
        model: Any model that can be traced.
        output_stride: Largest stride, a power of two.

    Raises:
        UserError: A deep map is shrunk by pooling or by a convolution of even size; the model is then as it was.
    """
    traced = trace(model)
    probe, by_position = node_shapes(model, traced)
    shapes = {traced.nodes[i]: shape for i, shape in by_position.items()}
    maps = {traced.nodes[i]: as_feature_map(traced.names[i], i, by_position, probe) for i in by_position}
    dilated: list[tuple[fx.Node, nn.Conv2d, int]] = []
    for node in traced.nodes:
        stride = _input_stride(node, maps)
        here = maps.get(node)
        if here is None or stride < output_stride:
            continue
        layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d):
            _check(model, layer, stride, output_stride)
            dilated.append((node, layer, stride // output_stride))
        elif here.stride > stride:
            raise _cannot(model, output_stride, f"{node.target} shrinks its deep maps")
    for node, layer, rate in dilated:
        _dilate(model, node, layer, rate, shapes)


def _input_stride(node: fx.Node, maps: dict[fx.Node, FeatureMap | None]) -> int:
    """Return the largest stride of the feature maps that a node reads, 0 without any."""
    return max((found.stride for source in node.all_input_nodes if (found := maps.get(source)) is not None), default=0)


def _check(model: nn.Module, layer: nn.Conv2d, stride: int, output_stride: int) -> None:
    changes = layer.stride != (1, 1) or stride > output_stride
    if changes and (any(size % 2 == 0 for size in layer.kernel_size) or isinstance(layer.padding, str)):
        raise _cannot(model, output_stride, f"a convolution of size {layer.kernel_size} shrinks its deep maps")


def _dilate(model: nn.Module, node: fx.Node, layer: nn.Conv2d, rate: int, shapes: _Shapes) -> None:
    vertical, horizontal = (int(side) for side in layer.padding)
    if layer.stride != (1, 1) and _is_padding(node.args[0], shapes):
        # padded for the stride by a layer of its own, unevenly: at stride 1 the even padding of the convolution is due
        owner, _, name = str(node.args[0].target).rpartition(".")  # type: ignore[union-attr]
        setattr(model.get_submodule(owner), name, nn.Identity())
        vertical, horizontal = (size // 2 for size in layer.kernel_size)
    layer.stride = (1, 1)
    layer.padding = (vertical * rate, horizontal * rate)
    if layer.kernel_size != (1, 1):
        layer.dilation = (layer.dilation[0] * rate, layer.dilation[1] * rate)


def _is_padding(source: object, shapes: _Shapes) -> bool:
    """Tell whether a node is a layer that makes its map larger by a few pixels and changes nothing else."""
    if not isinstance(source, fx.Node) or source.op != "call_module" or source.args[0] not in shapes:
        return False
    before, after = shapes[source.args[0]], shapes[source]  # type: ignore[index]
    return before[:2] == after[:2] and before[2] < after[2] < before[2] + 8


def _cannot(model: nn.Module, output_stride: int, reason: str) -> UserError:
    return UserError(
        f"{type(model).__name__} cannot have output_stride {output_stride}: {reason}, which no dilation replaces; "
        "use output_stride=32"
    )
