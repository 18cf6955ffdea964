"""Stages: the parameters, buffers and modules of a model grouped by depth, and the model split between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from tl_lightning.backbones.graph import Boundary, TracedGraph, graph_module, protect_input, trace
from tl_lightning.backbones.module_list import partition_by_modules
from tl_lightning.backbones.partition import Partition, partition_by_graph
from tl_lightning.errors import UserError, unknown_name

__all__ = ["Boundary", "Stages"]


class Stages:
    """Depth-ordered partition of a model: every parameter, buffer and module belongs to exactly one stage.

    The order is that of the computation, found by tracing the model with torch.fx. The last stage is the head: the
    final classifier layer with the dropout before it. A shared parameter belongs to the stage of its earliest use.
    What the model does not use in eval mode (the auxiliary heads of GoogLeNet and Inception) belongs to the head: it
    is newly initialised and must train. The model is not changed; tracing takes well under a second.

    Args:
        model: Any model that torch.fx can trace and that maps one tensor to its outputs.
        granularity: ``"module"`` for the stages that people name (``layer1``, ``features.4``), ``"boundary"`` for the
            finest ones, one for every layer or block at whose end exactly one tensor is alive.

    Attributes:
        names: Stage names, shallow to deep.
        boundaries: All boundaries, shallow to deep; none for stages made by ``from_modules``.

    Raises:
        UserError: The model cannot be traced; ``from_modules`` is the way out.
    """

    names: tuple[str, ...]
    boundaries: tuple[Boundary, ...]

    def __init__(self, model: nn.Module, granularity: Literal["module", "boundary"] = "module") -> None:
        if granularity not in ("module", "boundary"):
            raise unknown_name("granularity", granularity, ["module", "boundary"])
        self._adopt(model, partition_by_graph(model, trace(model), granularity))

    @classmethod
    def from_modules(cls, model: nn.Module, names: Sequence[str]) -> Stages:
        """Make the stages of a model that cannot be traced from module paths, shallow to deep, the head last.

        Raises:
            UserError: A name is unknown or given twice, or a parameter or buffer lies in none of the modules.
        """
        stages = cls.__new__(cls)
        stages._adopt(model, partition_by_modules(model, names))
        return stages

    def _adopt(self, model: nn.Module, partition: Partition) -> None:
        self._model = model
        self._partition = partition
        self.names = partition.names
        self.boundaries = partition.boundaries

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Stages({type(self._model).__name__}: {', '.join(self.names)})"

    def index(self, stage: str | int) -> int:
        """Return the number of a stage.

        Args:
            stage: A stage name, the path of a module or the name of a boundary inside a stage, ``"head"`` for the last
                stage, or a number (a negative one counts from the head).

        Raises:
            UserError: There is no such stage, or the module spans several stages.
        """
        if isinstance(stage, int):
            return self._checked(stage)
        if stage in self.names:
            return self.names.index(stage)
        if stage == "head":
            return len(self) - 1
        if stage in self._partition.spans:
            first, last = self._partition.spans[stage]
            if first != last:
                inside = ", ".join(self.names[first : last + 1])
                raise UserError(f"module {stage!r} spans several stages: name one of {inside}")
            return last
        if stage in self._partition.boundary_stage:
            return self._partition.boundary_stage[stage]
        raise unknown_name("stage", stage, [*self.names, *self._partition.spans, *self._partition.boundary_stage])

    def depth(self, depth: str | int) -> int:
        """Return how many stages are frozen, from 0 (none) to ``len(self) - 1`` (all but the head).

        Args:
            depth: A number (a negative one counts from the head: -1 trains the head only), ``"none"``, ``"head"``
                (only the head trains), or the first stage that trains, named as for ``index``.
        """
        if isinstance(depth, str):
            if depth == "none":
                return 0
            if depth.lstrip("+-").isdigit() and depth not in self.names:
                depth = int(depth)
        return self.index(depth)

    def parameter_stage(self) -> dict[str, int]:
        """Return the stage of every parameter, keyed as in ``model.named_parameters()``."""
        return dict(self._partition.parameters)

    def buffer_stage(self) -> dict[str, int]:
        """Return the stage of every buffer, keyed as in ``model.named_buffers()``."""
        return dict(self._partition.buffers)

    def module_stage(self) -> dict[str, int]:
        """Return the stage of every module, keyed as in ``model.named_modules()``.

        A layer with parameters or buffers is in the stage of those; any other module in that of its last use.
        """
        return {name: last for name, (_, last) in self._partition.spans.items()}

    def boundary_before(self, stage: str | int) -> Boundary:
        """Return the boundary at which all that is shallower than a stage ends.

        Raises:
            UserError: Nothing is shallower, or the stages were made by ``from_modules``.
        """
        number = self.index(stage)
        self._need_boundaries()
        if number == 0:
            raise UserError(f"stage {self.names[0]!r} is the first: no boundary lies before it")
        return self.boundaries[self._partition.ends[number - 1]]

    def split(self, boundary: Boundary | str) -> tuple[nn.Module, nn.Module]:
        """Split the model in two with ``suffix(prefix(x)) == model(x)``, in eval mode and in train mode.

        The two halves share modules and parameters with the model. Buffers that the model reads outside of a
        layer (the position indices of Swin) are tensors of their own once one of them moves to another device: split
        after moving the model. The suffix leaves its input as it is, even where the model works in place. In train mode
        it returns auxiliary outputs as the model does, except where the boundary lies behind an auxiliary head: there
        it returns the main output alone.

        Args:
            boundary: A boundary of this model or its name.

        Returns:
            The prefix, which maps images to the tensor at the boundary, and the suffix, which maps that to the output.

        Raises:
            UserError: There is no such boundary, or the stages were made by ``from_modules``.
        """
        self._need_boundaries()
        name = boundary.name if isinstance(boundary, Boundary) else boundary
        if name not in self._partition.boundary_stage:
            raise unknown_name("boundary", name, self._partition.boundary_stage)
        in_eval, in_training = trace(self._model), trace(self._model, training=True)
        evaluated = self._halves(in_eval, name)
        if str(in_eval.graph) == str(in_training.graph):
            return evaluated
        if in_training.halves(name) is None:
            in_training = in_training.main_output_only()
        trained = self._halves(in_training, name)
        prefix, suffix = (ModeSwitch(t, e) for t, e in zip(trained, evaluated, strict=True))
        return prefix, suffix

    def _halves(self, traced: TracedGraph, name: str) -> tuple[nn.Module, nn.Module]:
        graphs = traced.halves(name)
        if graphs is None:
            raise UserError(f"the model cannot be split at {name!r}: in train mode more than one tensor is alive there")
        protect_input(self._model, graphs[1])
        prefix, suffix = (graph_module(self._model, graph, traced.constants) for graph in graphs)
        return prefix, suffix

    def _checked(self, number: int) -> int:
        if isinstance(number, bool) or not -len(self) <= number < len(self):
            raise UserError(
                f"no stage {number}: there are {len(self)}, 0 ({self.names[0]}) to {len(self) - 1} ({self.names[-1]})"
            )
        return number % len(self)

    def _need_boundaries(self) -> None:
        if not self.boundaries:
            raise UserError("stages made from a list of modules have no boundaries: the model cannot be split")


class ModeSwitch(nn.Module):
    """Runs one of two modules that share their layers: one in train mode, the other in eval mode.

    Needed where forward itself asks for the mode, as for auxiliary heads and functional dropout.
    """

    def __init__(self, in_training: nn.Module, in_eval: nn.Module) -> None:
        super().__init__()
        self.in_training = in_training
        self.in_eval = in_eval
        self.training = in_eval.training

    def forward(self, x: object) -> object:
        """Run the half that belongs to the present mode."""
        return self.in_training(x) if self.training else self.in_eval(x)
