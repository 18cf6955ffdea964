"""Batch normalisation folded into the layer before it, for the parts of a model that are frozen in eval mode."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from tl_lightning.backbones.graph import graph_module, trace
from tl_lightning.backbones.stages import ModeSwitch

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batchnorm(prefix: nn.Module) -> fx.GraphModule:
    """Return a copy of a module in eval mode without the BatchNorm layers that follow a convolution or linear layer.

    The output is that of the module in eval mode, up to rounding. The copy owns its tensors, needs no gradient and
    is in eval mode; the module itself is left as it is. A normalisation stays where folding would not be exact:
    where the layer before it has another use, or where it normalises by the statistics of the batch.

    Args:
        prefix: A graph module, such as the first half of ``Stages.split``, or a module that torch.fx can trace.

    Raises:
        UserError: The module cannot be traced.
    """
    folded = copy.deepcopy(as_graph(prefix)).requires_grad_(False)
    for module in folded.modules():
        module.training = False  # not eval(): a module may have a train() of its own, which a copy inherits
    calls = Counter(node.target for node in folded.graph.nodes if node.op == "call_module")
    for norm_node in list(folded.graph.nodes):
        norm = _called(folded, norm_node)
        if type(norm) not in _NORMS or norm.running_mean is None:  # type: ignore[union-attr]
            continue
        layer_node = norm_node.all_input_nodes[0]
        layer = _called(folded, layer_node)
        if layer is None or len(layer_node.users) > 1 or calls[layer_node.target] > 1:
            continue
        merged = _merged(layer, norm)
        if merged is not None:
            folded.set_submodule(layer_node.target, merged)
            norm_node.replace_all_uses_with(layer_node)
            folded.graph.erase_node(norm_node)
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


class RowLinear(nn.Linear):
    """A linear layer with a folded BatchNorm1d, which acts on the features only where the input is [N, features]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, out] for [N, in]."""
        if x.ndim != 2:
            raise ValueError(f"a folded BatchNorm1d needs rows [N, features], not {list(x.shape)}")
        return super().forward(x)


def as_graph(module: nn.Module) -> fx.GraphModule:
    """Return the graph of a module in eval mode; it shares the module's tensors."""
    if isinstance(module, ModeSwitch):
        module = module.in_eval
    if isinstance(module, fx.GraphModule):
        return module
    traced = trace(module)
    return graph_module(module, traced.graph, traced.constants)


def _called(module: fx.GraphModule, node: object) -> nn.Module | None:
    if isinstance(node, fx.Node) and node.op == "call_module":
        return module.get_submodule(str(node.target))
    return None


def _merged(layer: nn.Module, norm: nn.Module | None) -> nn.Module | None:
    """Return one layer that does what both do, or None where there is none."""
    if type(layer) in _CONVOLUTIONS and layer.out_channels == norm.num_features:  # type: ignore[union-attr]
        return _with_fused_tensors(copy.copy(layer), layer, norm, fuse_conv_bn_weights)
    if type(layer) is nn.Linear and layer.out_features == norm.num_features:  # type: ignore[union-attr]
        rows = RowLinear(layer.in_features, layer.out_features, device="meta")
        return _with_fused_tensors(rows, layer, norm, fuse_linear_bn_weights)
    return None


def _with_fused_tensors(target: nn.Module, layer: nn.Module, norm: nn.Module | None, fuse: Callable) -> nn.Module:
    """Give ``target`` the weight and bias of both, computed in double precision."""
    sources = [layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias]  # type: ignore[union-attr]
    weight, bias, mean, variance, gamma, beta = (None if s is None else s.detach().double() for s in sources)  # type: ignore[operator]
    fused = fuse(weight, bias, mean, variance, norm.eps, gamma, beta)  # type: ignore[union-attr]
    target._parameters = {
        name: nn.Parameter(tensor.detach().to(layer.weight.dtype), requires_grad=False)
        for name, tensor in zip(("weight", "bias"), fused, strict=True)
    }
    target.training = False
    return target
