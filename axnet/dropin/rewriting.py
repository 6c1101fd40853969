"""One module's rewritten forward: the sites that hold and pay, put into its graph."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from axnet.dropin.checking import LEAST_GAIN, Pair
from axnet.dropin.examples import Seen
from axnet.dropin.probing import Values
from axnet.dropin.sites import AVERAGE, Site, sites_of
from axnet.dropin.swapping import Plan, hooked
from axnet.dropin.tracing import Call, Traced, compiled, traced

_BATCH = 2  # of the random numbers that nodes are recognised by


@dataclass
class Outcome:
    """What became of a site in one mode: `gain` where it is taken, else `why` not."""

    site: Site
    pair: Pair | None = None
    gain: float = 0.0
    why: str = ""


@dataclass
class Rewritten:
    """A module in one mode: its plan where something was taken, and every outcome."""

    outcomes: list[Outcome]
    plan: Plan | None = None
    gates: dict[str, Callable[..., Any]] = field(default_factory=dict)
    inner: tuple[nn.Module, ...] = ()
    """Modules whose own sites this plan contains."""


@dataclass(frozen=True)
class Options:
    """What accelerate was asked for."""

    verify: bool
    time: bool
    gains: dict[Any, float] = field(default_factory=dict)
    """What was timed already, by class, kind and shapes."""


def rewritten(
    module: nn.Module,
    exact: nn.Module,
    seen: Seen,
    training: bool,
    options: Options,
    inner: Sequence[nn.Module] = (),
    done: Sequence[nn.Module] = (),
) -> Rewritten:
    """Rewrite the forward of a module for one mode.

    module: a copy that may be run; exact: another, in float64. seen: how it is called. inner: modules within `exact`
    that have gates of their own, which may be heads of this one; done: those that are rewritten already.
    Raises UntraceableError.
    """
    exact.train(training)
    module.train(training)
    batch = (seen.batch, _BATCH)
    call = Call({n: s.drawn(torch.float64, batch) for n, s in seen.tensors.items()}, seen.constants)
    found, values = _found(exact, call, (), done)
    used: tuple[nn.Module, ...] = ()
    if inner:
        # only heads are worth looking into modules for: what they gain, modules alone do not have
        deep, deep_values = _found(exact, call, inner, done)
        heads = [s for s in sites_of(exact, deep.graph, deep_values) if "before an average" in s.kind]
        passed = _passed(exact, deep, heads, inner)
        if passed:
            used = tuple(passed)
            found, values = _found(exact, call, used, done)
    sites = sites_of(exact, found.graph, values)
    if used:
        sites = [s for s in sites if s.kind != "mask-guided attention" or not _within(s, found)]
    outcomes = [_tried(site, module, exact, values, seen, training, options) for site in sites]
    taken = [o for o in outcomes if o.pair is not None and not o.why]
    if not taken:
        return Rewritten(outcomes)
    skipped = {n: m for o in taken for n, m in _skipped(exact, found, o.site).items()}
    hanging = [n for n, m in skipped.items() if hooked(m)]
    if hanging:
        for outcome in taken:
            outcome.why, outcome.gain = f"'{hanging[0]}' has hooks", 0.0
        return Rewritten(outcomes)
    function = compiled(_with(found.graph, [o.site for o in taken]), type(module).__name__)
    gates = {name: gate for o in taken if o.pair is not None for name, gate in o.pair.gates.items()}
    kinds = tuple((n, type(m)) for n, m in skipped.items())
    return Rewritten(outcomes, Plan(found.names, dict(seen.constants), kinds, function), gates, used)


def _found(
    exact: nn.Module, call: Call, looked_into: Collection[nn.Module], done: Collection[nn.Module]
) -> tuple[Traced, Values]:
    found = traced(exact, call, looked_into, done)
    return found, Values(exact, found.graph, [call.tensors[n] for n in found.names])


def _within(site: Site, found: Traced) -> bool:
    return any(n.startswith(f"{p}.") for n in _called(site) for p in found.passed)


def _called(site: Site) -> list[str]:
    return [str(n.target) for n in site.interior if n.op == "call_module"]


def _passed(exact: nn.Module, deep: Traced, heads: Sequence[Site], inner: Sequence[nn.Module]) -> list[nn.Module]:
    """Those of the inner modules that the heads run through."""
    names = [name for site in heads for name in _called(site)]
    kept = []
    for path, module in deep.passed.items():
        if any(module is m for m in inner) and any(n.startswith(f"{path}.") for n in names):
            kept.append(module)
    return kept


def _tried(
    site: Site, module: nn.Module, exact: nn.Module, values: Values, seen: Seen, training: bool, options: Options
) -> Outcome:
    if site.kind == AVERAGE:
        return Outcome(site, why="X is read once as it is")
    try:
        pair = Pair(site)
        if options.verify and (why := pair.deviation(exact, values)):
            return Outcome(site, why=f"refused: {why}")
        gain = 0.0
        if options.time:
            inputs = [_own(values[n], module, seen) for n in site.inputs]
            alike = (type(module), site.kind, training, *(getattr(i, "shape", None) for i in inputs))
            if alike not in options.gains:
                options.gains[alike] = pair.gain(module, inputs, training)
                module.zero_grad(set_to_none=True)
            gain = options.gains[alike]
            if gain < LEAST_GAIN:
                return Outcome(site, why=f"no faster here ({gain:.2f}x)")
    except Exception as error:  # somebody's modules, called in another way than their forward does
        reason = " ".join(str(error).split())[:160]
        return Outcome(site, why=f"refused: it could not be compared ({type(error).__name__}: {reason})")
    return Outcome(site, pair, gain)


def _own(value: Any, module: nn.Module, seen: Seen) -> Any:
    """A value of the comparison in the module's own type, layout and batch."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    spec = next((s for s in seen.tensors.values() if s.dtype.is_floating_point), None)
    parameter = next(module.parameters(), None)
    dtype = parameter.dtype if parameter is not None else spec.dtype if spec is not None else torch.float32
    if value.dim() > 0 and value.shape[0] == _BATCH and seen.batch != _BATCH:
        value = value[:1].expand(seen.batch, *value.shape[1:])
    return value.to(dtype).contiguous()


def _skipped(exact: nn.Module, found: Traced, site: Site) -> dict[str, nn.Module]:
    """Modules that are not called any more where the site is replaced."""
    called = {str(n.target) for gate in site.gates.values() for n in gate.nodes if n.op == "call_module"}
    kept = {n.rpartition(".")[0] for n in called}
    names = {n for n in _called(site) if n not in called}
    names -= {n for n in names if isinstance(exact.get_submodule(n), nn.BatchNorm2d | nn.SyncBatchNorm)}
    inside = set(_called(site)) | kept
    names |= {p for p in found.passed if p and any(n.startswith(f"{p}.") for n in inside)}
    names |= {p for p, m in found.passed.items() if p and next(m.parameters(), None) is None}
    return {n: exact.get_submodule(n) for n in sorted(names)}


def _with(graph: fx.Graph, sites: Sequence[Site]) -> fx.Graph:
    """A copy of the graph with the sites replaced, in an order that every node's inputs come before it."""
    source = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "output":
            output = node
        else:
            copies[node] = source.node_copy(node, lambda n: copies[n])
    rank = {copies[n]: (i, 0) for i, n in enumerate(graph.nodes) if n in copies}
    end = source.output(fx.map_arg(output.args[0], lambda n: copies[n]))
    rank[end] = (len(rank) + 1, 0)
    fallen: set[fx.Node] = set()
    now = dict(copies)  # where a value is computed by now
    for site in sites:
        before = set(source.nodes)
        with source.inserting_before(end):
            results = site.emit(source, [now[n] for n in site.inputs])
        first = min(rank[copies[n]][0] for n in site.outputs)
        for i, new in enumerate(n for n in source.nodes if n not in before):
            rank[new] = (first, i + 1)
        for old, new in zip(site.outputs, results, strict=True):
            copies[old].replace_all_uses_with(new, delete_user_cb=before.__contains__)
            now[old] = new
        fallen |= {copies[n] for n in site.interior}
    for node in reversed(list(source.nodes)):
        if node in fallen and not node.users:
            source.erase_node(node)
        elif node.op in ("call_function", "get_attr") and not node.users and node not in copies.values():
            source.erase_node(node)  # what was made for an output that nobody reads
    return _sorted(source, rank)


def _sorted(graph: fx.Graph, rank: dict[fx.Node, tuple[int, int]]) -> fx.Graph:
    missing = {node: len(node.all_input_nodes) for node in graph.nodes}
    ready = [(rank[node], i, node) for i, node in enumerate(graph.nodes) if not missing[node]]
    heapq.heapify(ready)
    index = {node: i for i, node in enumerate(graph.nodes)}
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    while ready:
        _, _, node = heapq.heappop(ready)
        copies[node] = result.node_copy(node, lambda n: copies[n])
        for user in node.users:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, (rank[user], index[user], user))
    if len(copies) != len(index):
        raise RuntimeError("the sites of a module depend on each other in a circle.")
    return result
