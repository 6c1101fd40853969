"""Shape inference and autograd of pwap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from axnet.ops.layouts import accumulator, empty_features
from axnet.ops.library import refuse_double_backward


@torch.library.register_fake("axnet::pwap")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    k = weight.shape[0]
    acc = accumulator(x.dtype)
    return (
        x.new_empty((n, k, c)),
        x.new_empty((n, k, h, w)),
        x.new_empty((n, k, h, w), dtype=acc),
        x.new_empty((n, 2, k), dtype=acc),
    )


@torch.library.register_fake("axnet::pwap_backward")
def _(
    grad_pooled: Tensor,
    grad_prob: Tensor | None,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    norm: Tensor,
    pooled: Tensor,
    input_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty_features(x, x.shape[0] if input_grad else 0, x.shape[1]),
        torch.empty_like(weight),
        weight.new_empty((weight.shape[0],)),
    )


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _ = inputs
    pooled, _, logits, norm = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(logits, norm)
    ctx.save_for_backward(x, weight, logits, norm, pooled)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, logits, norm, pooled = ctx.saved_tensors
    grad_pooled, grad_prob = grads[:2]
    if grad_pooled is None and grad_prob is None:
        return None, None, None
    if grad_pooled is None:
        grad_pooled = torch.zeros_like(pooled)
    needs = ctx.needs_input_grad
    grad_x, grad_weight, grad_bias = torch.ops.axnet.pwap_backward(
        grad_pooled, grad_prob, x, weight, logits, norm, pooled, needs[0]
    )
    return grad_x if needs[0] else None, grad_weight if needs[1] else None, grad_bias if needs[2] else None


torch.library.register_autograd("axnet::pwap", _backward, setup_context=_context)
refuse_double_backward("pwap_backward")
