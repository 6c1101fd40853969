"""Several linear layers of the same size in one product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from axnet.backends import resolve, transformed
from axnet.ops.layouts import accumulator

LEAST, FEW, SOME = 4, 8, 64


def _product(x: Tensor, weight: Tensor, bias: Tensor, native: bool) -> Tensor:
    """As torch.baddbmm, in the form that is fastest on a CPU (docs/performance.md, "The gate")."""
    rows = x.shape[1]
    if native and known(rows >= LEAST):
        if known(rows <= FEW):
            product: Tensor = torch.ops.axnet.grouped_linear(x.to(accumulator(x.dtype)), weight, bias)
            return product
        if known(rows <= SOME):
            return torch.baddbmm(bias.unsqueeze(2), weight, x.transpose(1, 2)).transpose(1, 2)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def known(condition: Any) -> bool:
    """The condition; of a dynamic shape under torch.compile or export, whether it holds for every value."""
    if not torch.compiler.is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


class _GroupedLinear(torch.autograd.Function):
    """_product, but the weights' gradient comes out in the weights' own layout.

    The gradient that autograd derives for a batched product with transposed weights is transposed; adding it to the
    weights' .grad then takes longer than all the products.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, native: bool) -> Tensor:
        return _product(x, weight, bias, native)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, needs = grads[0], ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if needs[0] else None,
            torch.bmm(grad.transpose(1, 2), x) if needs[1] else None,
            grad.sum(1) if needs[2] else None,
            None,
        )


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, backend: str | None = None) -> Tensor:
    """x [G, N, I] times weight [G, O, I] plus bias [G, O], group by group: [G, N, O]. Differentiable twice."""
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    if transformed():  # torch.func knows PyTorch's own products
        return _product(x, weight, bias, False)
    native = x.device.type == "cpu" and resolve(backend, x.device) == "native"
    if not torch.is_grad_enabled():  # without the detour of a Function
        return _product(x, weight, bias, native)
    return _GroupedLinear.apply(x, weight, bias, native)
