"""Every backbone: partition, head, and halves that are the model.

Partition, head and smallest size are checked for all of them, in no memory. Numbers are computed for all but the two
largest (vit_h_14 and regnet_y_128gf hold 2.5 GB each): in eval mode at every boundary of the graph (at every fourth of
models with over 100 million parameters, whose blocks repeat), in train mode at four boundaries of the public ``split``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import images, without_storage
from test_inputs import check_smallest
from test_split import Joined, outputs
from test_stages import check_partition
from torch import fx

from tl_lightning.backbones import Stages, create_backbone, head_name, list_backbones
from tl_lightning.backbones.graph import trace

pytestmark = pytest.mark.slow

TOO_LARGE = ("vit_h_14", "regnet_y_128gf")


@pytest.mark.parametrize("name", list_backbones())
def test_partition_head_and_smallest_size(name: str) -> None:
    model = without_storage(name, dropout=0.1)
    for granularity in ("module", "boundary"):
        stages = check_partition(model, granularity)
        assert stages.index(head_name(model)) == len(stages) - 1
    check_smallest(name)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the values of the wanted nodes."""

    def __init__(self, model: torch.nn.Module, graph: fx.Graph, wanted: set[fx.Node]) -> None:
        super().__init__(model, graph=graph)
        self.wanted = wanted
        self.values: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.values[n] = value.clone()  # what follows may work in place
        return value


@pytest.mark.parametrize("name", [name for name in list_backbones() if name not in TOO_LARGE])
@torch.no_grad()
def test_the_halves_are_the_model_at_every_boundary(name: str) -> None:
    torch.manual_seed(0)
    model, x = create_backbone(name, num_classes=3).eval(), images(name)
    expected = model(x)
    traced = trace(model)
    whole = _Recorder(model, traced.graph, {traced.nodes[position] for position in traced.boundary_positions()})
    assert torch.equal(whole.run(x), expected)
    large = sum(p.numel() for p in model.parameters()) > 100e6
    for position in list(traced.boundary_positions())[:: 4 if large else 1]:
        halves = traced.halves(traced.names[position])
        assert halves is not None
        got = fx.Interpreter(model, graph=halves[1]).run(whole.values[traced.nodes[position]])
        assert torch.equal(got, expected), traced.names[position]
    stages = Stages(model)
    chosen = stages.boundaries[:: len(stages.boundaries) // 3]
    joined = [Joined(stages.split(boundary)) for boundary in chosen]
    assert all(torch.equal(outputs(halves, x, training=False), expected) for halves in joined)
    trained = outputs(model, x, training=True)
    assert all(torch.equal(outputs(halves, x, training=True), trained) for halves in joined)
