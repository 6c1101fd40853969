"""What the nodes of a graph compute, told from their values on random numbers in float64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_CLOSE = 1e-9
Template = tuple[int | None, ...]


class NoDropout(TorchFunctionMode):
    """torch's dropout functions let everything through: two networks that draw in another order can be compared."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call, or its first argument."""
        if func in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout):
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


class _Recorder(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        # in-place operations must not change what was recorded
        self.values[n] = result.detach().clone() if isinstance(result, Tensor) else result
        return result


class Values:
    """Values of every node of a graph for some arguments."""

    def __init__(self, module: nn.Module, graph: fx.Graph, arguments: Sequence[Tensor]) -> None:
        """Run the graph without gradients; the module is in float64 and may be changed by it."""
        recorder = _Recorder(module, graph)
        with torch.no_grad():
            recorder.run(*(a.clone() for a in arguments))
        self._values = recorder.values
        self._by_size: dict[int, list[tuple[fx.Node, float]]] = {}  # with their first numbers, in the graph's order
        for node in graph.nodes:
            value = self.tensor(node)
            if value is not None and value.numel() and _is_computed(module, node):
                first = value.reshape(-1)[0].item()
                self._by_size.setdefault(value.numel(), []).append((node, first))

    def __getitem__(self, node: fx.Node) -> Any:
        """The node's value."""
        return self._values.get(node)

    def tensor(self, node: fx.Node) -> Tensor | None:
        """The node's value where it is a tensor of a floating type."""
        value = self._values.get(node)
        return value if isinstance(value, Tensor) and value.is_floating_point() else None

    def maps(self) -> list[fx.Node]:
        """Nodes whose values are feature maps [N, C, H, W] of more than one pixel and channel."""
        found = []
        for node in self._values:
            value = self.tensor(node)
            if value is not None and value.dim() == 4 and value.shape[1] > 1 and value[0, 0].numel() > 1:
                found.append(node)
        return found

    def found(self, wanted: Tensor, among: Iterable[fx.Node]) -> list[fx.Node]:
        """Nodes that compute this value, in any shape, and are not made of another one that does."""
        chosen, flat = set(among), wanted.reshape(-1)
        allowed = _CLOSE * max(wanted.abs().max().item(), 1e-30)
        first = flat[0].item()
        equal = [
            node
            for node, begin in self._by_size.get(wanted.numel(), ())
            if node in chosen
            and abs(begin - first) <= allowed
            and (self._values[node].reshape(-1) - flat).abs().max().item() <= allowed
        ]
        return [n for n in equal if not any(source in equal for source in n.all_input_nodes)]

    def template(self, node: fx.Node, sizes: Sequence[int]) -> Template | None:
        """How a tensor of these sizes is indexed to get the node's shape: dimensions, and None for new ones of 1."""
        value = self.tensor(node)
        assert value is not None
        return arrangement(tuple(value.shape), tuple(sizes))


def _is_computed(module: nn.Module, node: fx.Node) -> bool:
    """Whether the node computes by itself; somebody's module that is one node has a forward of its own to look at."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__module__.startswith("torch.nn")
    return node.op in ("call_function", "call_method")


def arrangement(shape: tuple[int, ...], sizes: tuple[int, ...]) -> Template | None:
    """Dimensions of `sizes` in their order, with None wherever `shape` has another dimension of size 1."""
    template: list[int | None] = []
    wanted = list(enumerate(sizes))
    for size in shape:
        if wanted and wanted[0][1] == size:
            template.append(wanted.pop(0)[0])
        elif size == 1:
            template.append(None)
        else:
            return None
    return tuple(template) if not wanted else None


def shaped(t: Tensor, template: Template) -> Tensor:
    """The tensor with dimensions of size 1 where the template has None."""
    for position, dimension in enumerate(template):
        if dimension is None:
            t = t.unsqueeze(position)
    return t
