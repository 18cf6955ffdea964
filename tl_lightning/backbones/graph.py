"""The computation graph of a model: its nodes by depth, its boundaries, and its two halves at a boundary."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import fx, nn
from torchvision.ops import StochasticDepth

from tl_lightning.errors import UserError

_IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv", "setitem")
# Their forward depends on their own training flag, so they must stay modules: traced through, the flag that they
# had at that moment would become a constant of the graph.
_MODE_DEPENDENT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, StochasticDepth)


@dataclass(frozen=True)
class Boundary:
    """A node at which exactly one tensor is alive: all that is deeper depends on this tensor alone.

    Attributes:
        name: The qualified name of the node: the path of a module (``layer4.1.relu``; from its second call on with a
            counter, ``layer4.1.relu_1``) or of the module whose forward does the operation, and the operation
            (``layer4.1.add``).
        position: The place among all boundaries of the model, shallow to deep.
    """

    name: str
    position: int


class _Tracer(fx.Tracer):
    """Keeps as one node every module that owns no other module, or that depends on its training flag.

    Buffers become nodes as parameters do: a forward that changes a buffer in place is recorded, not executed.
    """

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _MODE_DEPENDENT) or next(m.children(), None) is None:
            return True
        return super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class TracedGraph:
    """The graph of a model in one mode.

    Attributes:
        graph: The fx graph.
        nodes: Its nodes in the order of execution, the output left out.
        names: The qualified name of each node, unique.
        paths: For each node the module that it calls, the parameter or buffer that it reads, or the module whose
            forward does the operation.
        constants: Tensors that forward makes of nothing, by target.
        headless: Whether the model ends in a feature map: its last layer is then no classifier.
    """

    graph: fx.Graph
    nodes: list[fx.Node]
    names: list[str]
    paths: list[str]
    constants: dict[str, torch.Tensor]
    headless: bool = False

    def boundary_positions(self) -> list[int]:
        """Return the indices of the nodes at which exactly one tensor is alive."""
        index = {node: i for i, node in enumerate(self.nodes)}
        last_use = [max((index.get(u, len(index)) for u in n.users), default=-1) for n in self.nodes]
        found: list[int] = []
        alive: list[int] = []
        for i, node in enumerate(self.nodes):
            alive = [j for j in alive if last_use[j] > i]
            # A parameter can be read again at any time, so that it never counts as alive.
            if node.op != "get_attr" and last_use[i] > i:
                alive.append(i)
            if alive == [i] and node.op != "placeholder" and not _is_tuple(node):
                found.append(i)
        return found

    def halves(self, name: str) -> tuple[fx.Graph, fx.Graph] | None:
        """Return the graphs up to and after the node of that name, or None where it is no boundary."""
        cut = self.names.index(name) if name in self.names else -1
        if cut not in self.boundary_positions():
            return None
        prefix, suffix = fx.Graph(), fx.Graph()
        in_prefix: dict[fx.Node, fx.Node] = {}
        in_suffix = {self.nodes[cut]: suffix.placeholder("activation")}
        for node in self.nodes[: cut + 1]:
            in_prefix[node] = prefix.node_copy(node, in_prefix.__getitem__)
        prefix.output(in_prefix[self.nodes[cut]])
        deeper = set(self.nodes[cut + 1 :])
        for i, node in enumerate(self.graph.nodes):
            if i > cut or (node.op == "get_attr" and any(user in deeper for user in node.users)):
                in_suffix[node] = suffix.node_copy(node, in_suffix.__getitem__)
        suffix.lint()
        return prefix, suffix

    def main_output_only(self) -> TracedGraph:
        """Return the graph without what only the further outputs (auxiliary heads) need."""
        copied: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        result = graph.graph_copy(self.graph, copied)
        if isinstance(result, fx.Node) and _makes_tuple(result):
            result = tuple(result.args)
        graph.output(result[0] if isinstance(result, tuple | list) else result)
        kept: list[int] = []
        for i, node in reversed(list(enumerate(self.nodes))):
            if node.users and not copied[node].users:
                graph.erase_node(copied[node])
            else:
                kept.insert(0, i)
        nodes = [copied[self.nodes[i]] for i in kept]
        names, paths = [self.names[i] for i in kept], [self.paths[i] for i in kept]
        return TracedGraph(graph, nodes, names, paths, self.constants)


@runtime_checkable
class KnowsItsGraph(Protocol):
    """A model that was made from a graph and need not be traced."""

    def traced(self, training: bool) -> TracedGraph:
        """Return the model's graph in one mode."""
        ...


def trace(model: nn.Module, training: bool = False) -> TracedGraph:
    """Trace a model as if it were wholly in one mode; the model, its flags and the random state stay as they are.

    Raises:
        UserError: The model cannot be traced by torch.fx, or draws random numbers outside of its modules.
    """
    if isinstance(model, KnowsItsGraph):
        return model.traced(training)
    tracer = _Tracer()
    state = torch.get_rng_state()
    own = set(vars(model))
    try:
        with _mode(model, training):
            graph = tracer.trace(model, concrete_args=_optional_arguments(model))
        if not torch.equal(state, torch.get_rng_state()):
            raise RuntimeError("forward draws random numbers that steer it")
    except Exception as error:
        raise _untraceable(model, error) from error
    finally:
        torch.set_rng_state(state)
        constants = {name: vars(model).pop(name) for name in set(vars(model)) - own}
    nodes = [n for n in graph.nodes if n.op != "output"]
    scopes = {n: tracer.node_name_to_scope[n.name][0] for n in nodes}
    paths = [str(n.target) if n.op in ("call_module", "get_attr") else scopes[n] for n in nodes]
    return TracedGraph(graph, nodes, list(_unique_names(model, nodes, paths)), paths, constants)


def graph_module(model: nn.Module, graph: fx.Graph, constants: dict[str, torch.Tensor]) -> fx.GraphModule:
    """Return a module that runs a graph on the model's own submodules, parameters and buffers (shared, not copied)."""
    root: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            root[node.target] = model.get_submodule(node.target)
        elif node.op == "get_attr":
            owner, _, attribute = node.target.rpartition(".")
            shared = constants.get(node.target)
            root[node.target] = getattr(model.get_submodule(owner), attribute) if shared is None else shared
    module = fx.GraphModule(root, graph)
    module.training = model.training
    return module


def protect_input(model: nn.Module, graph: fx.Graph) -> None:
    """Copy the first input of a graph where an in-place operation could reach it: the caller may keep what it gives."""
    source = next(iter(graph.nodes))
    aliases = [source]
    for alias in aliases:
        for user in alias.users:
            if _is_in_place(model, user):
                with graph.inserting_after(source):
                    copy = graph.call_method("clone", (source,))
                source.replace_all_uses_with(copy)
                copy.args = (source,)  # which was replaced, too
                return
            if user.op != "output" and user not in aliases and not _computes_anew(model, user):
                aliases.append(user)


def _is_in_place(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    return bool(node.kwargs.get("inplace")) or name.endswith("_") or name in _IN_PLACE_OPERATORS


def _computes_anew(model: nn.Module, node: fx.Node) -> bool:
    """Tell whether the result is surely a tensor of its own: a layer's is, a view or a dropout in eval mode is not."""
    if node.op != "call_module":
        return False
    return any(True for _ in model.get_submodule(str(node.target)).parameters())


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the flag of every module directly: a model's own ``train()`` may do more than that."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = training
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _is_tuple(node: fx.Node) -> bool:
    """Tell whether a node's value is a tuple: a named one, or one whose users take items out of it by number."""
    items = [u for u in node.users if u.target is operator.getitem and isinstance(u.args[1], int)]
    return bool(items) or _makes_tuple(node)


def _makes_tuple(node: fx.Node) -> bool:
    return isinstance(node.target, type) and issubclass(node.target, tuple)


def _optional_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the defaults of forward: a forward that asks ``if argument is None`` is traced as it is called."""
    parameters = inspect.signature(type(model).forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _unique_names(model: nn.Module, nodes: list[fx.Node], paths: list[str]) -> Iterator[str]:
    taken = {name for name, _ in model.named_modules()}
    called: set[str] = set()
    for node, path in zip(nodes, paths, strict=True):
        if node.op == "call_module" and path not in called:
            called.add(path)
            yield path
            continue
        operation = re.sub(r"_\d+$", "", node.name)
        stem = path if node.op in ("call_module", "get_attr") else f"{path}.{operation}".lstrip(".")
        name, count = stem, 0
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name)
        yield name


def _untraceable(model: nn.Module, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{type(model).__name__} cannot be traced by torch.fx ({reason}): name its stages yourself, "
        f"as an ordered list of its modules, shallow to deep (Stages.from_modules)"
    )
