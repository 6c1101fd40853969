"""Several linear layers of the same size in one product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _GroupedLinear(torch.autograd.Function):
    """As torch.baddbmm, but the weights' gradient comes out in the weights' own layout.

    The gradient that autograd derives for a batched product with transposed weights is transposed; adding it to the
    weights' .grad then takes longer than all the products.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, needs = grads[0], ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if needs[0] else None,
            torch.bmm(grad.transpose(1, 2), x) if needs[1] else None,
            grad.sum(1) if needs[2] else None,
        )


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [G, N, I] times weight [G, O, I] plus bias [G, O], group by group: [G, N, O]. Differentiable twice."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    if not torch.is_grad_enabled():  # without the detour of a Function
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
    return _GroupedLinear.apply(x, weight, bias)
