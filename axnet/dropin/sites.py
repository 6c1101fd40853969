"""Places of a graph that axnet's functions compute: found by what the nodes compute, not by their names."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from axnet.dropin import layers
from axnet.dropin.probing import Template, Values, arrangement, shaped
from axnet.dropin.tracing import ancestors, descendants, subgraph

AVERAGE = "global average"
"""Alone, as before a classifier or in a squeeze-and-excitation gate: nothing is to be gained."""


@dataclass
class Site:
    """Nodes that one call replaces.

    kind: what it is. inputs: nodes that the call takes, first X. outputs: nodes that it computes. gates: graphs that it
    calls, by the name of the attribute that will hold their functions. emit: adds the call to a graph.
    """

    kind: str
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    emit: Callable[[fx.Graph, Sequence[fx.Node]], list[fx.Node]]
    gates: dict[str, fx.Graph] = field(default_factory=dict)

    @property
    def interior(self) -> set[fx.Node]:
        """Nodes between inputs and outputs, with the outputs: unless someone else needs them, they fall away."""
        return descendants(self.inputs[:1]) & ancestors(self.outputs, self.inputs)


def sites_of(module: nn.Module, graph: fx.Graph, values: Values) -> list[Site]:
    """Everything in a graph that axnet's functions compute; no node is an output of two of them."""
    attentions = list(_attentions(module, graph, values))
    sites = _heads(attentions, values)
    averaged = {id(a) for site in sites for a in attentions if a.result in site.interior}
    sites += [_single(one) for one in attentions if id(one) not in averaged]
    sites += _pcam(module, graph, values)
    taken = {node for site in sites for node in site.interior}
    return sites + _averages(values, taken)


@dataclass
class _Attention:
    """One mask-guided gate: X, m, the gate and its graph, and the node of its result."""

    x: fx.Node
    mask: fx.Node
    entries: tuple[layers.Entry, ...]
    more: list[fx.Node]
    gate: fx.Graph
    name: str
    norm: str | None
    result: fx.Node


def _attentions(module: nn.Module, graph: fx.Graph, values: Values) -> Iterator[_Attention]:
    for product in graph.nodes:
        factors = _factors(product)
        if factors is None:
            continue
        for x, mask in (factors, factors[::-1]):
            vx, vm, vp = values.tensor(x), values.tensor(mask), values.tensor(product)
            if vx is None or vm is None or vp is None or vx.dim() != 4 or vm.dim() != 4 or vx.shape[1] == 1:
                continue
            if vp.shape != vx.shape or vm.shape[1] != 1 or vm.shape[2:] != vx.shape[2:]:
                continue
            found = _attention(module, values, x, mask, product)
            if found is not None:
                yield found


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    if node.target not in (operator.mul, torch.mul, "mul", "__mul__") or len(node.args) < 2:
        return None
    first, second = node.args[:2]
    return (first, second) if isinstance(first, fx.Node) and isinstance(second, fx.Node) else None


def _attention(module: nn.Module, values: Values, x: fx.Node, mask: fx.Node, product: fx.Node) -> _Attention | None:
    vx, vp = values[x], values[product]
    after = descendants([x])
    wanted = (vx.mean((2, 3)), vx.amax((2, 3)), vp.mean((2, 3)), vp.amax((2, 3)))
    descriptors: dict[fx.Node, int] = {}
    for which, value in enumerate(wanted):
        for node in values.found(value, after):
            descriptors.setdefault(node, which)
    later = descendants(descriptors)
    order = list(x.graph.nodes)
    size = wanted[0].numel()
    gates = [n for n in order if n in later and (v := values.tensor(n)) is not None and v.numel() == size]
    for gate in reversed(gates):
        g = values[gate].reshape(*vx.shape[:2], 1, 1)
        blends = values.found(g * vp + (1 - g) * vx, descendants([gate]))
        if not blends:
            continue
        inside = ancestors([gate], descriptors)
        own = [n for n in inside if n in later]
        used = [n for n in descriptors if any(u in inside for u in n.users)]
        if any(n in after and n not in own and isinstance(values[n], Tensor) for n in inside) or not used:
            return None  # the gate looks at X otherwise than through the descriptors
        around = ancestors([*blends]) - ancestors([gate])
        if any(u not in inside and u not in around for n in own if n is not gate for u in n.users):
            return None  # what the gate computes on its way is used elsewhere
        blend = blends[0]
        if len(blends) > 1 or not all(u in around for u in gate.users):
            return None
        inner = {n for n in own for n in n.all_input_nodes}
        more = [n for n in order if n in inner and n not in own and n not in used and n.op != "get_attr"]
        entries = []
        for node in used:
            template = values.template(node, tuple(vx.shape[:2]))
            if template is None:
                return None
            entries.append((descriptors[node], template))
        norm, result = _norm_of(module, blend)
        name = f"_axnet_{'training' if module.training else 'eval'}_gate_{order.index(gate)}"
        return _Attention(
            x, mask, tuple(entries), more, subgraph([*used, *more], [gate], alone=True), name, norm, result
        )
    return None


def _norm_of(module: nn.Module, blend: fx.Node) -> tuple[str | None, fx.Node]:
    """Name and node of the batch normalisation that alone takes a blend, or the blend itself."""
    users = list(blend.users)
    if len(users) == 1 and users[0].op == "call_module":
        name = str(users[0].target)
        if isinstance(module.get_submodule(name), nn.BatchNorm2d | nn.SyncBatchNorm):
            return name, users[0]
    return None, blend


def _single(one: _Attention) -> Site:
    def emit(graph: fx.Graph, inputs: Sequence[fx.Node]) -> list[fx.Node]:
        x, mask, *more = inputs
        norm = None if one.norm is None else graph.get_attr(one.norm)
        gate = graph.get_attr(one.name)
        return [graph.call_function(layers.gated, (x, mask, gate, norm, one.entries, tuple(more)))]

    return Site("mask-guided attention", [one.x, one.mask, *one.more], [one.result], emit, {one.name: one.gate})


def _heads(attentions: Sequence[_Attention], values: Values) -> list[Site]:
    """Attentions whose normalised result is only averaged over the pixels, together where they are on one X."""
    by_input: dict[fx.Node, list[tuple[_Attention, list[fx.Node]]]] = {}
    for one in attentions:
        if one.norm is None:
            continue
        after = descendants([one.result])
        z = values[one.result]
        averages = values.found(z.mean((2, 3)), after)
        between = (ancestors(averages) & after) | {one.result}
        closed = all(u in between for n in between if n not in averages for u in n.users)
        if averages and closed and all(values.template(a, tuple(z.shape[:2])) is not None for a in averages):
            by_input.setdefault(one.x, []).append((one, averages))
    fused = Counter(one.norm for heads in by_input.values() for one, _ in heads)
    for x, heads in by_input.items():  # torch's own batch normalisation keeps its statistics for the backward pass
        by_input[x] = [h for h in heads if fused[h[0].norm] == _calls(h[0].result)]
    return [_head_site(x, heads, values) for x, heads in by_input.items() if heads]


def _calls(node: fx.Node) -> int:
    """How often the graph calls the module that a node calls."""
    return sum(n.op == "call_module" and n.target == node.target for n in node.graph.nodes)


def _head_site(x: fx.Node, heads: list[tuple[_Attention, list[fx.Node]]], values: Values) -> Site:
    sizes = tuple(values[x].shape[:2])
    places = [(i, a, values.template(a, sizes)) for i, (_, averages) in enumerate(heads) for a in averages]

    def emit(graph: fx.Graph, inputs: Sequence[fx.Node]) -> list[fx.Node]:
        masks, more, at = [], [], 1
        for one, _ in heads:
            masks.append(inputs[at])
            more.append(tuple(inputs[at + 1 : at + 1 + len(one.more)]))
            at += 1 + len(one.more)
        gates = tuple(graph.get_attr(one.name) for one, _ in heads)
        norms = tuple(graph.get_attr(str(one.norm)) for one, _ in heads)
        entries = tuple(one.entries for one, _ in heads)
        arguments: Any = (inputs[0], tuple(masks), gates, norms, entries, tuple(more))
        together = graph.call_function(layers.averaged_heads, arguments)
        each = [graph.call_method("select", (together, 1, i)) for i in range(len(heads))]
        return [graph.call_function(shaped, (each[i], template)) for i, _, template in places]

    inputs = [x, *(node for one, _ in heads for node in (one.mask, *one.more))]
    kind = f"{len(heads)} mask-guided gate{'s' if len(heads) > 1 else ''} before an average"
    return Site(kind, inputs, [a for _, a, _ in places], emit, {one.name: one.gate for one, _ in heads})


@dataclass
class _Maps:
    """A 1x1 convolution on X and what follows from PCAM's definition: nodes, their templates and kinds."""

    node: fx.Node
    weight: str | fx.Node
    bias: str | fx.Node | None
    count: int
    places: list[tuple[fx.Node, int, Template]]


def _pcam(module: nn.Module, graph: fx.Graph, values: Values) -> list[Site]:
    by_input: dict[fx.Node, list[_Maps]] = {}
    for node in graph.nodes:
        maps = _convolution(module, node)
        x = node.args[0] if node.args else None
        if maps is None or not isinstance(x, fx.Node):
            continue
        vx, logits = values.tensor(x), values.tensor(node)
        if vx is None or logits is None or vx.dim() != 4 or vx[0, 0].numel() < 2 or logits.shape[2:] != vx.shape[2:]:
            continue
        weight = maps.weight if isinstance(maps.weight, fx.Node) else None
        w = values[weight] if weight is not None else _attribute(module, str(maps.weight))
        bias = maps.bias if not isinstance(maps.bias, str) else None
        b = values[bias] if bias is not None else None if maps.bias is None else _attribute(module, str(maps.bias))
        maps.count = w.shape[0]
        if w.shape[0] > 64:
            continue
        p = logits.sigmoid()
        pooled = torch.einsum("nkhw,nchw->nkc", p / p.sum((2, 3), keepdim=True), vx)
        classified = (pooled * w.flatten(1)).sum(-1) + (0 if b is None else b)
        after = descendants([node])
        for which, value in enumerate((pooled, classified)):
            for found in values.found(value, after):
                template = arrangement(tuple(values[found].shape), tuple(value.shape))
                if template is None and which == 0 and value.shape[1] == 1:  # one map: [N, C]
                    template = arrangement(tuple(values[found].shape), (value.shape[0], value.shape[2]))
                    template = None if template is None else (*template, -1)
                if template is None and which == 1 and value.shape[1] == 1:
                    template = arrangement(tuple(values[found].shape), (value.shape[0],))
                    template = None if template is None else (*template, -1)
                if template is not None:
                    maps.places.append((found, which, template))
        if any(which == 0 for _, which, _ in maps.places):
            by_input.setdefault(x, []).append(maps)
            for found in values.found(p, after):
                maps.places.append((found, 3, (0, 1, 2, 3)))
            maps.places.append((node, 2, (0, 1, 2, 3)))
    return [_pcam_site(x, convolutions) for x, convolutions in by_input.items()]


def _convolution(module: nn.Module, node: fx.Node) -> _Maps | None:
    if node.op == "call_module":
        conv = module.get_submodule(str(node.target))
        plain = isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.groups == 1
        if plain and conv.stride == (1, 1) and conv.padding in ((0, 0), "valid", "same"):
            return _Maps(node, f"{node.target}.weight", f"{node.target}.bias" if conv.bias is not None else None, 0, [])
    elif node.target in (F.conv2d, torch.conv2d) and len(node.args) + len(node.kwargs) in (2, 3):
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        if isinstance(weight, fx.Node) and (bias is None or isinstance(bias, fx.Node)):
            return _Maps(node, weight, bias, 0, [])
    return None


def _attribute(module: nn.Module, path: str) -> Tensor:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _pcam_site(x: fx.Node, convolutions: list[_Maps]) -> Site:
    given = [n for maps in convolutions for n in (maps.weight, maps.bias) if isinstance(n, fx.Node)]
    places, start = [], 0
    for maps in convolutions:
        places += [(node, which, template, start, maps.count) for node, which, template in maps.places]
        start += maps.count
    total = start

    def emit(graph: fx.Graph, inputs: Sequence[fx.Node]) -> list[fx.Node]:
        own = dict(zip([x, *given], inputs, strict=True))

        def value(source: str | fx.Node | None) -> fx.Node | None:
            return graph.get_attr(source) if isinstance(source, str) else None if source is None else own[source]

        weights, biases = (tuple(value(getattr(m, name)) for m in convolutions) for name in ("weight", "bias"))
        together = graph.call_function(layers.probability_pooling, (own[x], weights, biases))
        parts = [graph.call_function(operator.getitem, (together, i)) for i in range(4)]
        results = []
        for _, which, template, first, count in places:
            node = parts[which]
            if count < total:
                node = graph.call_method("narrow", (node, 1, first, count))
            if template[-1] == -1:  # one map, whose dimension the network does not have
                node = graph.call_method("squeeze", (node, 1))
                template = template[:-1]
            results.append(graph.call_function(shaped, (node, template)) if None in template else node)
        return results

    classes = f"{total} map{'s' if total > 1 else ''}"
    return Site(f"PCAM pooling, {classes}", [x, *given], [node for node, *_ in places], emit)


def _averages(values: Values, taken: set[fx.Node]) -> list[Site]:
    """Global average and maximum of one X, and either alone."""
    sites = []
    for x in values.maps():
        vx = values[x]
        after = descendants([x]) - taken
        places = []
        for which, value in enumerate((vx.mean((2, 3)), vx.amax((2, 3)))):
            for node in values.found(value, after):
                template = values.template(node, tuple(vx.shape[:2]))
                if template is not None:
                    places.append((node, which, template))
        if places:
            sites.append(_average_site(x, places))
    return sites


def _average_site(x: fx.Node, places: list[tuple[fx.Node, int, Template]]) -> Site:
    def emit(graph: fx.Graph, inputs: Sequence[fx.Node]) -> list[fx.Node]:
        together = graph.call_function(layers.average_max, (inputs[0],))
        parts = [graph.call_function(operator.getitem, (together, i)) for i in (0, 1)]
        return [graph.call_function(shaped, (parts[which], template)) for _, which, template in places]

    kinds = {which for _, which, _ in places}
    kind = AVERAGE if kinds == {0} else "global maximum" if kinds == {1} else "average and maximum"
    return Site(kind, [x], [node for node, _, _ in places], emit)
