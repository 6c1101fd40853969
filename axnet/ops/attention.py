"""Shape inference and autograd of masked_moments and gate_norm.

dX of the whole attention block is written once: gate_norm passes the gradient of Z and the coefficients of the blend
back through `link` and `coef_link`, which stand for x, and masked_moments' backward makes the single pass over X.
`register` gives this wiring to the ops of one namespace: "axnet" (compiled), "axnet_triton".
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from axnet.ops import calls, rows
from axnet.ops.layouts import accumulator, empty_features, in_layout_of
from axnet.ops.library import refuse_double_backward


def keeps_rows(x: Tensor, anatomies: int, blocks: int) -> bool:
    """Whether gate_norm saves its rows for the backward pass: where ten times the numbers per (n, c) fit its pixels.

    Of 7x7 pixels they would be a third. There, on a CPU, the backward pass takes the moments of x again, and positions
    of maxima are kept in 16 bits. On a GPU small maps are bound by launches, not by memory; and a size that is only a
    symbol must not be compared, or torch.compile would compile again at the bound.
    """
    pixels = x.shape[2] * x.shape[3]
    if x.device.type != "cpu" or torch.compiler.is_compiling() or isinstance(pixels, torch.SymInt):
        return True
    saved = anatomies * rows.saved_rows(1) if blocks > 1 else rows.saved_rows(anatomies)
    positions, gates = 1 + anatomies, anatomies
    return 10 * (saved + positions + gates) <= pixels


def _fake_masked_moments(x: Tensor, mask: Tensor, second: bool, positions: bool, blocks: int) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    a = mask.shape[1]
    acc = accumulator(x.dtype)
    block_anatomies = 1 if blocks > 1 else a
    return (
        x.new_empty((n, rows.descriptor_rows(a), c), dtype=acc),
        x.new_empty((n if second else 0, rows.moment_rows(a), c), dtype=acc),
        x.new_empty((n if positions else 0, 1 + a, c), dtype=torch.int32),
        x.new_empty((n, rows.mass_rows(a)), dtype=torch.float64),
        x.new_empty(()).expand(n, blocks * c, h, w) if blocks else x.new_empty((0,)),
        x.new_empty((), dtype=acc).expand(n, blocks, rows.coef_rows(block_anatomies), c)
        if blocks
        else x.new_empty((0,), dtype=acc),
    )


def _fake_masked_moments_backward(
    x: Tensor,
    mask: Tensor,
    argmax: Tensor,
    grad_descriptors: Tensor,
    grad_z: Tensor | None,
    coef: Tensor | None,
    input_grad: bool,
    mask_grad: bool,
) -> tuple[Tensor, Tensor]:
    n = x.shape[0]
    return (
        empty_features(x, n if input_grad else 0, x.shape[1]),
        mask.new_empty((n if mask_grad else 0, *mask.shape[1:])),
    )


def _fake_gate_norm(
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    moments: Tensor | None,
    mass: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    concat: bool,
    save: bool,
    link: Tensor,
    coef_link: Tensor,
) -> tuple[Tensor, ...]:
    n, c = x.shape[:2]
    a = mask.shape[1]
    blocks, block_anatomies = (a, 1) if concat else (1, a)
    acc = accumulator(x.dtype)
    return (
        empty_features(x, n, blocks * c),
        x.new_empty((blocks * c,), dtype=acc),
        x.new_empty((blocks * c,), dtype=acc),
        x.new_empty((n if save else 0, blocks, rows.saved_rows(block_anatomies), c), dtype=acc),
    )


def _fake_gate_norm_backward(
    grad_z: Tensor,
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    mass: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    saved: Tensor,
    eps: float,
    batch_statistics: bool,
    concat: bool,
) -> tuple[Tensor, ...]:
    n, c = x.shape[:2]
    a = mask.shape[1]
    blocks, block_anatomies = (a, 1) if concat else (1, a)
    acc = accumulator(x.dtype)
    return (
        x.new_empty((n, blocks, rows.coef_rows(block_anatomies), c), dtype=acc),
        x.new_empty((n, a, c), dtype=acc),
        x.new_empty((blocks * c,), dtype=acc),
        x.new_empty((blocks * c,), dtype=acc),
    )


def _moments_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, mask, _, _, blocks = inputs
    out = calls.Moments(*output)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(out.moments, out.argmax, out.mass)
    keep = keeps_rows(x, mask.shape[1], blocks)
    ctx.save_for_backward(x, mask, out.argmax if keep else out.argmax.to(torch.int16))


def _moments_backward(
    ops: Any,
    ctx: Any,
    grad_descriptors: Tensor | None,
    _moments: None,
    _argmax: None,
    _mass: None,
    grad_z: Tensor | None,
    grad_coef: Tensor | None,
) -> tuple[Tensor | None, ...]:
    x, mask, argmax = ctx.saved_tensors
    if grad_descriptors is None:
        shape = (x.shape[0], rows.descriptor_rows(mask.shape[1]), x.shape[1])
        grad_descriptors = x.new_zeros(shape, dtype=accumulator(x.dtype))
    input_grad, mask_grad = ctx.needs_input_grad[:2]
    grad = calls.masked_moments_backward(
        ops,
        x,
        mask,
        argmax=argmax.to(torch.int32),
        grad_descriptors=grad_descriptors,
        grad_z=grad_z,
        coef=grad_coef,
        input_grad=input_grad,
        mask_grad=mask_grad,
    )
    return grad.x if input_grad else None, grad.mask if mask_grad else None, None, None, None


def _gate_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, mask, gate, _, mass, weight, _, running_mean, _, eps, concat, _, link, _ = inputs
    if link.requires_grad:
        _take(link)
    out = calls.GateNorm(*output)
    ctx.mark_non_differentiable(out.mean, out.var, out.saved)
    ctx.save_for_backward(x, mask, gate, mass, weight, out.mean, out.var, out.saved)
    ctx.eps, ctx.concat, ctx.batch_statistics = eps, concat, running_mean is None


def _take(link: Tensor) -> None:
    """Refuse a second gate_norm on one link: the gradients of both would arrive as one sum, their coefficients too."""
    if getattr(link, "_axnet_taken", False):
        raise RuntimeError(
            "gate_norm: link was used before, expected the link of a masked_moments of its own: the gradients of two "
            "calls cannot be told apart."
        )
    link._axnet_taken = True  # type: ignore[attr-defined]


def _gate_backward(ops: Any, ctx: Any, grad_z: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, mask, gate, mass, weight, mean, var, saved = ctx.saved_tensors
    grad_z = in_layout_of(x, grad_z)
    grad = calls.gate_norm_backward(
        ops,
        grad_z,
        x,
        mask,
        gate,
        mass=mass,
        weight=weight,
        mean=mean,
        var=var,
        saved=saved,
        eps=ctx.eps,
        batch_statistics=ctx.batch_statistics,
        concat=ctx.concat,
    )
    grads: list[Tensor | None] = [None] * 14  # gate_norm's arguments, in order
    grads[2] = grad.gate
    grads[5:7] = (grad.weight if ctx.needs_input_grad[5] else None, grad.bias if ctx.needs_input_grad[6] else None)
    grads[12:] = (grad_z, grad.coef)  # through the links
    return tuple(grads)


def register(namespace: str, backend: str) -> None:
    """Give the attention ops of a namespace their shape inference and autograd; `backend` is its name in errors."""
    ops = getattr(torch.ops, namespace)
    for op, fake in (
        ("masked_moments", _fake_masked_moments),
        ("masked_moments_backward", _fake_masked_moments_backward),
        ("gate_norm", _fake_gate_norm),
        ("gate_norm_backward", _fake_gate_norm_backward),
    ):
        torch.library.register_fake(f"{namespace}::{op}", fake)
    for op, backward, context in (
        ("masked_moments", _moments_backward, _moments_context),
        ("gate_norm", _gate_backward, _gate_context),
    ):
        torch.library.register_autograd(f"{namespace}::{op}", partial(backward, ops), setup_context=context)
        refuse_double_backward(namespace, f"{op}_backward", backend)
