"""Activations of a frozen part of a model, computed without gradients on its folded graph."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from tl_lightning.backbones.graph import Boundary, TracedGraph, graph_module, trace
from tl_lightning.errors import unknown_name
from tl_lightning.folding import as_graph, fold_batchnorm

Transform = Callable[[Tensor], Tensor]

# Large batches spend their time on fetching fresh memory from the system: with 32 images of 96 px the buffers of a
# convolution are used again (0.44 of the eager time on EfficientNet-Lite0, against 0.59 with 64).
_CPU_BATCH = 32
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class FrozenPrefix:
    """A frozen part of a model, ready to be run many times: folded, in eval mode, channels last, without gradients.

    It is a copy: later changes of the model do not reach it.

    Args:
        prefix: The part, such as the first half of ``Stages.split`` or the result of ``graph_at``.
        device: Where to run it; by default where the part is.
        normalise: Applied to the images first.
    """

    def __init__(
        self, prefix: nn.Module, device: torch.device | str | None = None, normalise: Transform | None = None
    ) -> None:
        self.device = torch.device(device) if device is not None else device_of(prefix)
        self.normalise = normalise
        self._graph = fold_batchnorm(prefix).to(self.device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what the part makes of float images [B, C, H, W]: one tensor [B, ...] for each of its outputs."""
        size = _CPU_BATCH if self.device.type == "cpu" else len(images)
        parts = [self._run(some) for some in images.split(max(size, 1))]
        return tuple(torch.cat(outputs) if len(outputs) > 1 else outputs[0] for outputs in zip(*parts, strict=True))

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.to(self.device, non_blocking=True)
        if self.normalise is not None:
            images = self.normalise(images)
        outputs = self._graph(images.contiguous(memory_format=torch.channels_last))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(output.contiguous() for output in outputs)


def compute_activations(
    prefix: nn.Module,
    images: Tensor | Iterable[Tensor],
    device: torch.device | str | None = None,
    normalise: Transform | None = None,
) -> Tensor:
    """Run a frozen part of a model once over images, in eval mode and without gradients.

    Args:
        prefix: The part, such as the first half of ``Stages.split``; it is left as it is.
        images: Float [N, C, H, W], or batches of them.
        device: Where to run; by default where the part is.
        normalise: Applied to every batch first.

    Returns:
        The activations [N, ...] on the CPU.
    """
    frozen = FrozenPrefix(prefix, device, normalise)
    return torch.cat([frozen(batch)[0].cpu() for batch in _batches(images)])


def record(
    model: nn.Module,
    boundaries: Sequence[Boundary | str],
    images: Tensor | Iterable[Tensor],
    device: torch.device | str | None = None,
    normalise: Transform | None = None,
    reduce: Transform | None = None,
) -> dict[str, Tensor]:
    """Return the activations at several boundaries of a model from one forward pass.

    Args:
        model: The model; run as in eval mode, without gradients, and left as it is.
        boundaries: Boundaries of ``Stages(model)``, or their names.
        images: Float [N, C, H, W], or batches of them.
        device: Where to run; by default where the model is.
        normalise: Applied to every batch first.
        reduce: Applied to the activations, for example ``global_average``; whole maps of early boundaries are large.

    Returns:
        For each name the activations [N, ...] on the CPU.

    Raises:
        UserError: There is no such boundary.
    """
    names = [b.name if isinstance(b, Boundary) else b for b in boundaries]
    frozen = FrozenPrefix(graph_at(model, names, reduce), device, normalise)
    parts = [[output.cpu() for output in frozen(batch)] for batch in _batches(images)]
    return {name: torch.cat(outputs) for name, outputs in zip(names, zip(*parts, strict=True), strict=True)}


def graph_at(
    model: nn.Module, names: Sequence[str], reduce: Transform | None = None, traced: TracedGraph | None = None
) -> fx.GraphModule:
    """Return the part of a model that ends with the named nodes, as a tuple; it shares the model's tensors.

    Args:
        model: The model.
        names: Names of boundaries.
        reduce: Applied to each of them.
        traced: The model's graph in eval mode, to trace it once for several calls.

    Raises:
        UserError: There is no such node, or the model cannot be traced.
    """
    traced = traced or trace(model)
    for name in names:
        if name not in traced.names:
            raise unknown_name("boundary", name, [traced.names[i] for i in traced.boundary_positions()])
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    outputs: dict[str, fx.Node] = {}
    last = max((traced.names.index(name) for name in names), default=-1)
    for node, name in zip(traced.nodes[: last + 1], traced.names, strict=False):
        copied[node] = graph.node_copy(node, copied.__getitem__)
        if name in names:  # kept at once, since an activation in place may follow
            outputs[name] = graph.call_function(reduce or torch.clone, (copied[node],))
    graph.output(tuple(outputs[name] for name in names))
    return graph_module(model, graph, traced.constants)


def global_average(activation: Tensor) -> Tensor:
    """Return the mean over all positions, [B, C], of maps [B, C, H, W] or tokens [B, T, C]; [B, C] stays."""
    if activation.ndim == 4:
        return activation.mean(dim=(2, 3))
    return activation.mean(dim=1) if activation.ndim == 3 else activation.clone()


def prefix_fingerprint(prefix: nn.Module) -> str:
    """Return a hash of what a part of a model computes in eval mode: its graph, layers, parameters and buffers."""
    graph = as_graph(prefix)
    digest = hashlib.sha256(_ADDRESS.sub("", str(graph)).encode())
    for name, tensor in [*graph.named_parameters(), *graph.named_buffers()]:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the module's first tensor, the CPU where it has none."""
    return next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))


def _batches(images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    return iter(images.split(256) if isinstance(images, Tensor) else images)
