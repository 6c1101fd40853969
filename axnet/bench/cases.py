"""What is timed: shapes, layouts, tasks, and the forms that compete on each."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from axnet import functional
from axnet.bench.peers import published_attention, published_gate, published_pooling
from axnet.nn import AnatomyAwareAttention
from axnet.nn.norm import gated_norm
from axnet.types import MaskedPool

SHAPES = ((1, 1024, 16, 16), (8, 1024, 16, 16), (8, 1024, 32, 32), (16, 1024, 7, 7), (4, 2048, 14, 14))
LAYOUTS = ("NCHW", "channels_last")
TASKS = ("a3", "a3+mlp", "pwap1", "pwap14")
"""a3: moments, gate and normalisation with a gate of no weights; a3+mlp: the module; pwapK: K probability maps."""
MODES = ("eval", "training")
FORMS = ("axnet", "axnet-compile", "eager", "compile", "peers")
"""axnet-compile: torch.compile of axnet; eager: axnet.reference; compile: torch.compile of the same; peers: the
published op-by-op form."""

Call = Callable[[], Any]
Form = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One thing to time: task of TASKS, mode of MODES, shape [N, C, H, W] and layout of X, two anatomies."""

    task: str
    mode: str
    shape: tuple[int, int, int, int]
    layout: str
    dtype: torch.dtype = torch.float32

    @property
    def floor_bytes(self) -> int:
        """Bytes that cannot be avoided: every pass over a map of X's size once, and the weights of the gate."""
        n, c, h, w = self.shape
        maps = {"a3": (3, 8), "pwap": (1, 3)}[self.task[: 2 if self.task.startswith("a3") else 4]]
        passes = maps[self.mode == "training"]
        size = torch.finfo(self.dtype).bits // 8
        weights = 10 * c * c * size * (3 if self.mode == "training" else 1) if self.task == "a3+mlp" else 0
        return passes * n * c * h * w * size + weights


def weightless_gate(pool: MaskedPool) -> Tensor:
    """A gate that uses every descriptor and has no weights: A3 without its MLP."""
    entries = (pool.avg[:, None], pool.max[:, None], pool.masked_max, pool.masked_avg)
    return torch.stack([F.leaky_relu(entry.expand_as(pool.masked_max), 0.2) for entry in entries]).sum(0).sigmoid()


def forms_of(case: Case, forms: tuple[str, ...] = FORMS, device: str = "cpu", copies: int = 1) -> dict[str, Call]:
    """One call per form of a case; every call returns what gradients and outputs it made, for comparison.

    copies: of X, which the calls of a form take in turn, so that none finds X in a cache. Forms besides FORMS:
    "compile:MODE" is torch.compile of the eager form in that mode.
    """
    n, _, h, w = case.shape
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(case.dtype)

    xs = [draw(*case.shape) for _ in range(copies)]
    if case.layout == "channels_last":
        xs = [x.contiguous(memory_format=torch.channels_last) for x in xs]
    mask = torch.rand((n, 2, h, w), generator=generator, device=device)
    functions = (_attention if case.task.startswith("a3") else _pooling)(case, mask, draw)
    with torch.no_grad():
        outputs = functions["eager"](xs[0])
    grad = draw(*outputs[0].shape)
    if case.layout == "channels_last" and grad.dim() == 4:  # as the next layer of such a network hands it over
        grad = grad.contiguous(memory_format=torch.channels_last)
    calls: dict[str, Call] = {}
    for form in forms:
        name, _, compile_mode = form.partition(":")
        compiled = {"compile": "eager", "axnet-compile": "axnet"}.get(name)
        function = functions[compiled or name]
        if compiled:
            function = torch.compile(function, fullgraph=True, dynamic=False, mode=compile_mode or None)
        calls[form] = _evaluation(function, xs) if case.mode == "eval" else _training(function, xs, grad)
    return calls


def _evaluation(function: Form, xs: list[Tensor]) -> Call:
    turns = itertools.cycle(xs)

    def call() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return function(next(turns))

    return call


def _training(function: Form, xs: list[Tensor], grad: Tensor) -> Call:
    turns = itertools.cycle(xs)

    def call() -> tuple[Tensor, ...]:
        leaf = next(turns).detach().requires_grad_()
        out = function(leaf)[0]
        out.backward(grad)
        assert leaf.grad is not None
        return out.detach(), leaf.grad

    return call


def _attention(case: Case, mask: Tensor, draw: Callable[..., Tensor]) -> dict[str, Form]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = AnatomyAwareAttention(case.shape[1], 2, dropout=0.0).to(mask.device, case.dtype)
    module.train(case.mode == "training")
    plain = copy.copy(module)  # the same parameters
    plain.backend = "reference"
    norm = module.norm
    gate, plain_gate = (module.gate, plain.gate) if case.task == "a3+mlp" else (weightless_gate, weightless_gate)

    def peers(x: Tensor) -> tuple[Tensor, ...]:
        published = (lambda pool: published_gate(module, pool)) if case.task == "a3+mlp" else weightless_gate
        return (published_attention(x, mask.to(x.dtype), published, norm),)

    return {
        "axnet": lambda x: (gated_norm(norm, x, mask, gate),),
        "eager": lambda x: (gated_norm(norm, x, mask, plain_gate, backend="reference"),),
        "peers": peers,
    }


def _pooling(case: Case, mask: Tensor, draw: Callable[..., Tensor]) -> dict[str, Form]:
    maps, channels = int(case.task.removeprefix("pwap")), case.shape[1]
    weight = (draw(maps, channels) / channels**0.5).requires_grad_(case.mode == "training")
    bias = torch.zeros(maps, device=mask.device, dtype=case.dtype, requires_grad=case.mode == "training")
    return {
        "axnet": lambda x: functional.pwap(x, weight, bias),
        "eager": lambda x: functional.pwap(x, weight, bias, backend="reference"),
        "peers": lambda x: published_pooling(x, weight, bias),
    }
