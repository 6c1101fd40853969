"""Whether a site's replacement computes the same, and whether it is faster."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from axnet.bench.timing import seconds_of
from axnet.dropin.probing import NoDropout, Values
from axnet.dropin.sites import Site
from axnet.dropin.tracing import compiled, subgraph

TOLERANCE = 1e-7
"""Of the largest value, in float64."""
LEAST_GAIN = 1.05
_SECONDS, _ROUNDS = 0.25, 3


class _View:
    """A module that has the gates of a site as methods."""

    def __init__(self, module: nn.Module, gates: dict[str, Callable[..., Any]]) -> None:
        self._module, self._gates = module, gates

    def __getattr__(self, name: str) -> Any:
        gate = self._gates.get(name)
        if gate is None:
            return getattr(self._module, name)
        return lambda *args: gate(self, *args)


class Pair:
    """Both forms of a site, as functions of a module and the site's inputs."""

    def __init__(self, site: Site) -> None:
        """Compile the two graphs."""
        self.site = site
        self.original = compiled(subgraph(site.inputs, site.outputs), "original")
        graph = fx.Graph()
        placeholders = [graph.placeholder(f"in_{i}") for i in range(len(site.inputs))]
        graph.output(tuple(site.emit(graph, placeholders)))
        self.fused = compiled(graph, "fused")
        self.gates = {name: compiled(gate, name) for name, gate in site.gates.items()}

    def deviation(self, module: nn.Module, values: Values) -> str | None:
        """None where outputs, gradients and buffers are equal on random X, else what differs and by how much.

        module: in float64, in the mode to compare; its copies are used.
        """
        inputs = [values[node] for node in self.site.inputs]
        inputs[0] = torch.randn_like(inputs[0])
        results = []
        for function in (self.original, self.fused):
            own = copy.deepcopy(module)
            given = [
                t.detach().clone().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t
                for t in inputs
            ]
            leaves = {f"of input {i}": t for i, t in enumerate(given) if isinstance(t, Tensor) and t.requires_grad}
            leaves |= {f"of '{n}'": p.requires_grad_() for n, p in own.named_parameters()}
            with torch.enable_grad(), NoDropout():
                outputs = function(_View(own, self.gates), *given)
                usable = [o for o in outputs if o.requires_grad]
                found = torch.autograd.grad(
                    usable, list(leaves.values()), [_weights(o) for o in usable], allow_unused=True
                )
            named = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
            named |= {f"gradient {n}": g for n, g in zip(leaves, found, strict=True) if g is not None}
            results.append(named | {f"buffer '{n}'": b for n, b in own.named_buffers()})
        return difference(*results)

    def gain(self, module: nn.Module, inputs: Sequence[Any], training: bool) -> float:
        """How many times faster the replacement is; training: forward and backward."""
        device = "cuda" if isinstance(inputs[0], Tensor) and inputs[0].is_cuda else "cpu"
        view = _View(module, self.gates)
        calls = [_step(function, view, inputs, training) for function in (self.original, self.fused)]
        times: list[list[float]] = [[], []]
        for call in calls:
            call()
        start = time.perf_counter()
        while len(times[0]) < _ROUNDS or (time.perf_counter() - start < _SECONDS and len(times[0]) < 50):
            for call, own in zip(calls, times, strict=True):
                own.append(seconds_of(call, device))
        return statistics.median(times[0]) / statistics.median(times[1])


def _weights(t: Tensor) -> Tensor:
    generator = torch.Generator(t.device).manual_seed(t.numel())
    return torch.randn(t.shape, generator=generator, device=t.device, dtype=t.dtype)


def _step(function: Callable[..., Any], view: _View, inputs: Sequence[Any], training: bool) -> Callable[[], None]:
    def evaluate() -> None:
        with torch.no_grad():
            function(view, *inputs)

    def train() -> None:
        given = [t.detach().requires_grad_() if i == 0 and isinstance(t, Tensor) else t for i, t in enumerate(inputs)]
        with torch.enable_grad():
            outputs = function(view, *given)
            torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])

    return train if training else evaluate


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str | None:
    """What deviates most by more than TOLERANCE of its largest value, in words, or None."""
    if missing := sorted(first.keys() ^ second.keys()):
        return f"{missing[0]} exists in one form alone"
    largest: dict[str, float] = {}  # a gradient that is 0 but for rounding is compared with the others
    for name, a in first.items():
        kind = name.partition(" ")[0]
        largest[kind] = max(largest.get(kind, 0.0), a.abs().max().item() if a.numel() else 0.0)
    worst, where = 0.0, ""
    for name, a in first.items():
        b = second[name]
        if a.shape != b.shape:
            return f"{name} has shape {list(b.shape)} for {list(a.shape)}"
        if a.numel() == 0:
            continue
        a, b = a.double(), b.double()
        least = max(1e-6 * largest[name.partition(" ")[0]], 1e-12)
        by = ((a - b).abs().max() / a.abs().max().clamp(min=least)).item()
        if not by <= worst:
            worst, where = by, name
    return f"{where} deviates by {worst:.1e} of its largest value" if not worst <= TOLERANCE else None
