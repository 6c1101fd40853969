"""Shape inference and autograd of pwap, for the ops of any namespace (axnet.ops.attention)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from axnet.ops import calls
from axnet.ops.layouts import accumulator, empty_features
from axnet.ops.library import refuse_double_backward


def _fake_pwap(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    k = weight.shape[0]
    acc = accumulator(x.dtype)
    return (
        x.new_empty((n, k, c)),
        x.new_empty((n, k, h, w)),
        x.new_empty((n, k, h, w), dtype=acc),
        x.new_empty((n, 2, k), dtype=acc),
    )


def _fake_pwap_backward(
    grad_pooled: Tensor,
    grad_prob: Tensor | None,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    norm: Tensor,
    pooled: Tensor,
    input_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulator(x.dtype)
    return (
        empty_features(x, x.shape[0] if input_grad else 0, x.shape[1]),
        x.new_empty(tuple(weight.shape), dtype=acc),
        x.new_empty((weight.shape[0],), dtype=acc),
    )


def _fake_gated_pwap(
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    k = weight.shape[0]
    return x.new_empty((n, k, c)), x.new_empty((n, k, h, w))


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _ = inputs
    out = calls.Pooled(*output)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(out.logits, out.norm)
    ctx.save_for_backward(x, weight, out.logits, out.norm, out.pooled)


def _backward(
    ops: Any, ctx: Any, grad_pooled: Tensor | None, grad_prob: Tensor | None, _logits: None, _norm: None
) -> tuple[Tensor | None, ...]:
    x, weight, logits, norm, pooled = ctx.saved_tensors
    if grad_pooled is None and grad_prob is None:
        return None, None, None
    if grad_pooled is None:
        grad_pooled = torch.zeros_like(pooled)
    needs = ctx.needs_input_grad
    grad = calls.pwap_backward(
        ops, grad_pooled, grad_prob, x, weight, logits=logits, norm=norm, pooled=pooled, input_grad=needs[0]
    )
    return grad.x if needs[0] else None, grad.weight if needs[1] else None, grad.bias if needs[2] else None


def register(namespace: str, backend: str) -> None:
    """Give the pooling ops of a namespace their shape inference and autograd; `backend` is its name in errors."""
    torch.library.register_fake(f"{namespace}::pwap", _fake_pwap)
    torch.library.register_fake(f"{namespace}::pwap_backward", _fake_pwap_backward)
    backward = partial(_backward, getattr(torch.ops, namespace))
    torch.library.register_autograd(f"{namespace}::pwap", backward, setup_context=_context)
    refuse_double_backward(namespace, "pwap_backward", backend)
    if hasattr(getattr(torch.ops, namespace), "gated_pwap"):
        torch.library.register_fake(f"{namespace}::gated_pwap", _fake_gated_pwap)
