"""The graph of one module's forward, with the modules inside it as single nodes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn


class UntraceableError(Exception):
    """Why a forward has no graph."""


@dataclass(frozen=True)
class Call:
    """How a module was called: names of its tensors, in the order of its parameters, and everything else."""

    tensors: dict[str, Tensor]
    constants: dict[str, Any]

    @classmethod
    def bound(cls, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Of the arguments of a call; TypeError where they do not fit the signature."""
        values = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
        values.apply_defaults()
        given = list(values.arguments.items())[1:]
        return cls(
            {name: value for name, value in given if isinstance(value, Tensor)},
            {name: value for name, value in given if not isinstance(value, Tensor)},
        )


class _Tracer(fx.Tracer):
    """Modules with weights are nodes, but for those named; modules without are looked into, but for those done."""

    def __init__(self, looked_into: Collection[nn.Module], done: Collection[nn.Module]) -> None:
        super().__init__()
        self.looked_into = looked_into
        self.done = done
        self.passed: dict[str, nn.Module] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one node."""
        if any(m is one for one in self.looked_into):
            return False
        if any(m is one for one in self.done):
            return True
        library = type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        return library or next(m.parameters(), None) is not None or next(m.buffers(), None) is not None

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the modules that are looked into: their hooks would be missed."""
        name = self.path_of_module(m)
        if not self.is_leaf_module(m, name):
            self.passed[name] = m
        return super().call_module(m, forward, args, kwargs)


@dataclass(frozen=True)
class Traced:
    """A forward as a graph; `passed` are the modules within it that the graph looks into."""

    graph: fx.Graph
    passed: dict[str, nn.Module]
    names: tuple[str, ...]
    """Of the placeholders, the tensors of the call."""


def traced(
    module: nn.Module, call: Call, looked_into: Collection[nn.Module] = (), done: Collection[nn.Module] = ()
) -> Traced:
    """The graph of a module's forward for a kind of call, in the mode that the module is in.

    looked_into: modules with weights that are part of the graph all the same; done: those that are single nodes.

    Raises UntraceableError.
    """
    tracer = _Tracer(looked_into, done)
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(p.kind in variable and call.constants.get(p.name) for p in parameters):
        raise UntraceableError("it takes any number of arguments")
    fixed = [p for p in parameters if p.kind not in variable]

    names = tuple(p.name for p in fixed if p.name in call.tensors)
    source = ", ".join(f"{n}={n}" for n in names)
    space: dict[str, Any] = {"constants": {p.name: call.constants[p.name] for p in fixed if p.name in call.constants}}
    space["forward"] = type(module).forward
    exec(f"def bound(self{''.join(f', {n}' for n in names)}):\n  return forward(self, {source}, **constants)", space)
    tracer.traced_func_name = "_axnet_bound"
    holder = type(module)
    swapped = type(holder.__name__, (holder,), {"_axnet_bound": space["bound"], "__module__": holder.__module__})
    module.__class__ = cast(Any, swapped)
    try:
        with torch.random.fork_rng(devices=[]):
            graph = tracer.trace(module)
    except Exception as error:  # whatever someone's forward raises when it is given proxies
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UntraceableError(reason[:160]) from error
    finally:
        module.__class__ = holder
    return Traced(graph, tracer.passed, names)


def descendants(start: Collection[fx.Node]) -> set[fx.Node]:
    """Nodes that are computed from some of these, without themselves unless one comes from another."""
    found: set[fx.Node] = set()
    waiting = [user for node in start for user in node.users]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.users)
    return found


def ancestors(ends: Collection[fx.Node], cut: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Nodes that these are computed from, these included; what lies in `cut`, and behind it, is not."""
    found: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in cut:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def compiled(graph: fx.Graph, name: str) -> Any:
    """The function of a graph, its module as first argument."""
    graph.lint()
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(compile(code.src, f"<axnet {name}>", "exec"), space)
    return space["forward"]


def subgraph(inputs: Collection[fx.Node], outputs: Sequence[fx.Node], alone: bool = False) -> fx.Graph:
    """The nodes between as a graph of their own: placeholders for the inputs, the outputs as a tuple, one `alone`."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"in_{i}") for i, node in enumerate(inputs)}
    wanted = ancestors(outputs, inputs)
    for node in outputs[0].graph.nodes:
        if node in wanted:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(copies[outputs[0]] if alone else tuple(copies[node] for node in outputs))
    return graph
