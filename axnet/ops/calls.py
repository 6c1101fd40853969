"""One function per op: called by keyword, its results have names. `ops` is a namespace of axnet.ops.fused_ops.

Shapes: x [N, C, H, W] of any floating type; mask [N, A, H, W], gate [N, A, C] and everything between the passes in
the accumulation type; blocks is A with fusion "concat", else 1; the rows are those of axnet.ops.rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload


class Moments(NamedTuple):
    """Results of masked_moments."""

    descriptors: Tensor
    """[N, descriptor_rows(A), C]: avg, max, masked_avg_a, masked_max_a."""
    moments: Tensor
    """[N, moment_rows(A), C], or no images."""
    argmax: Tensor
    """Positions of the maxima [N, 1 + A, C], int32, or no images."""
    mass: Tensor
    """[N, mass_rows(A)], float64."""
    link: Tensor
    """Stands for x in gate_norm [N, blocks*C, H, W]: its gradient arrives through it."""
    coef_link: Tensor
    """Likewise, for the coefficients of that gradient [N, blocks, coef_rows, C]."""


class MomentsGrad(NamedTuple):
    """Results of masked_moments_backward; what was not asked for has no images."""

    x: Tensor
    mask: Tensor


class GateNorm(NamedTuple):
    """Results of gate_norm."""

    z: Tensor
    """[N, blocks*C, H, W] in x's type and layout."""
    mean: Tensor
    """Statistics that Z was normalised by [blocks*C]."""
    var: Tensor
    """The same, biased."""
    saved: Tensor
    """Rows for the backward pass [N, blocks, saved_rows, C], or no images."""


class GateNormGrad(NamedTuple):
    """Results of gate_norm_backward."""

    coef: Tensor
    """For masked_moments_backward [N, blocks, coef_rows, C]."""
    gate: Tensor
    weight: Tensor
    bias: Tensor


class Pooled(NamedTuple):
    """Results of pwap."""

    pooled: Tensor
    """[N, K, C] in x's type."""
    prob: Tensor
    """[N, K, H, W] in x's type."""
    logits: Tensor
    """[N, K, H, W], kept for the backward pass."""
    norm: Tensor
    """[N, 2, K]: largest logit and the sum of p / p(largest logit), kept for the backward pass."""


class PooledGrad(NamedTuple):
    """Results of pwap_backward; x has no images where it was not asked for."""

    x: Tensor
    weight: Tensor
    bias: Tensor


def _call(op: OpOverload, *arguments: object) -> tuple[Tensor, ...]:
    """Call an op; without gradients past its autograd kernel, a detour through Python as long as a small op."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def masked_moments(ops: Any, x: Tensor, mask: Tensor, *, second: bool, positions: bool, blocks: int) -> Moments:
    """Descriptors of x in one read; with `second` the moments, with `positions` those of the maxima.

    blocks: output blocks of the gate_norm that follows (0: none will, and no links are made).
    """
    return Moments(*_call(ops.masked_moments.default, x, mask, second, positions, blocks))


def masked_moments_backward(
    ops: Any,
    x: Tensor,
    mask: Tensor,
    *,
    argmax: Tensor,
    grad_descriptors: Tensor,
    grad_z: Tensor | None,
    coef: Tensor | None,
    input_grad: bool,
    mask_grad: bool,
) -> MomentsGrad:
    """Gradients of x and of the mask, gate_norm's part included where grad_z and coef came through the links."""
    op = ops.masked_moments_backward.default
    return MomentsGrad(*_call(op, x, mask, argmax, grad_descriptors, grad_z, coef, input_grad, mask_grad))


def gate_norm(
    ops: Any,
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    *,
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
) -> GateNorm:
    """Z of the gated blend, normalised by the statistics given or else by those of the batch, from the moments."""
    op = ops.gate_norm.default
    norm = (weight, bias, running_mean, running_var, eps)
    return GateNorm(*_call(op, x, mask, gate, moments, mass, *norm, concat, save, link, coef_link))


def gate_norm_backward(
    ops: Any,
    grad_z: Tensor,
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    *,
    mass: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    saved: Tensor,
    eps: float,
    batch_statistics: bool,
    concat: bool,
) -> GateNormGrad:
    """Gradients of gate, weight and bias, and the coefficients of x's; `saved` without images is made again."""
    op = ops.gate_norm_backward.default
    norm = (weight, mean, var, saved, eps)
    return GateNormGrad(*_call(op, grad_z, x, mask, gate, mass, *norm, batch_statistics, concat))


def pwap(ops: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Pooled:
    """Probability-weighted average pooling of x by maps of weight [K, C] and bias [K]."""
    return Pooled(*_call(ops.pwap.default, x, weight, bias))


def pwap_backward(
    ops: Any,
    grad_pooled: Tensor,
    grad_prob: Tensor | None,
    x: Tensor,
    weight: Tensor,
    *,
    logits: Tensor,
    norm: Tensor,
    pooled: Tensor,
    input_grad: bool,
) -> PooledGrad:
    """Gradients of x, weight and bias."""
    op = ops.pwap_backward.default
    return PooledGrad(*_call(op, grad_pooled, grad_prob, x, weight, logits, norm, pooled, input_grad))


def gated_pwap(
    ops: Any,
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    *,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Pooled and prob of gate_norm's Z under given statistics, which is never written."""
    op = ops.gated_pwap.default
    pooled, prob = _call(op, x, mask, gate, norm_weight, norm_bias, mean, var, eps, weight, bias)
    return pooled, prob
