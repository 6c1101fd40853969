"""What a rewritten forward calls: axnet's functions on the tensors of somebody else's network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from axnet import backends, functional, reference
from axnet.checks import MAX_ANATOMIES, MAX_MAPS, beyond_one
from axnet.dropin.pixels import of_one_pixel
from axnet.dropin.probing import Template, shaped
from axnet.nn.heads import normalised_averages
from axnet.nn.norm import gated_norm
from axnet.ops import calls, fused_ops
from axnet.types import MaskedPool

Entry = tuple[int, Template]
"""Argument of a gate: which descriptor of (avg X, max X, avg mX, max mX), and its shape."""


def average_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Average and maximum over the pixels [N, C] in one read."""
    pool = functional.masked_pool(x, torch.ones((), device=x.device).expand(x.shape[0], 1, *x.shape[2:]))
    return pool.avg, pool.max


def gated(
    x: Tensor, mask: Tensor, gate: Callable[..., Tensor], norm: nn.Module | None, entries: Sequence[Entry], more: Any
) -> Tensor:
    """norm of g(descriptors) m X + (1 - g) X."""
    function = _gate(gate, entries, more)
    mask = mask.expand(x.shape[0], -1, -1, -1)
    if not _is_mask(mask):
        y = reference.blend(x, mask, function(reference.masked_pool(x, mask)))
        return y if norm is None else norm(y)
    if norm is None:
        return functional.attention_blend(x, mask, function)
    return gated_norm(norm, x, mask, function)


def averaged_heads(
    x: Tensor,
    masks: Sequence[Tensor],
    gates: Sequence[Callable[..., Tensor]],
    norms: Sequence[nn.Module],
    entries: Sequence[Sequence[Entry]],
    more: Sequence[Any],
) -> Tensor:
    """Every head's `gated` averaged over the pixels [N, K, C], for sixteen heads a read of x."""
    if len(masks) > MAX_ANATOMIES:
        parts = [slice(i, i + MAX_ANATOMIES) for i in range(0, len(masks), MAX_ANATOMIES)]
        return torch.cat([averaged_heads(x, masks[p], gates[p], norms[p], entries[p], more[p]) for p in parts], 1)
    together = torch.cat([mask.expand(x.shape[0], -1, -1, -1) for mask in masks], 1)
    functions = [_gate(*head) for head in zip(gates, entries, more, strict=True)]

    def all_gates(pool: MaskedPool) -> Tensor:
        own = (
            pool._replace(masked_avg=pool.masked_avg[:, i : i + 1], masked_max=pool.masked_max[:, i : i + 1])
            for i in range(len(functions))
        )
        return torch.cat([function(one) for function, one in zip(functions, own, strict=True)], 1)

    averages = normalised_averages(x, together, all_gates, norms) if _is_mask(together) else None
    if averages is not None:
        return averages
    heads = zip(masks, gates, norms, entries, more, strict=True)
    return torch.stack([gated(x, *head).mean((2, 3)) for head in heads], 1)


def _gate(gate: Callable[..., Tensor], entries: Sequence[Entry], more: Any) -> Callable[[MaskedPool], Tensor]:
    def function(pool: MaskedPool) -> Tensor:
        descriptors = (pool.avg, pool.max, pool.masked_avg[:, 0], pool.masked_max[:, 0])
        with of_one_pixel(pool.avg):
            return gate(*(shaped(descriptors[i], template) for i, template in entries), *more).flatten(1).unsqueeze(1)

    return function


def _is_mask(mask: Tensor) -> bool:
    """Whether axnet's functions take the values as they are: in [0, 1], and no whole numbers, of which 255 is one."""
    return (mask.is_floating_point() or mask.dtype == torch.bool) and beyond_one(mask) is None


def probability_pooling(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """PCAM of several 1x1 convolutions on one x, in one read.

    Returns pooled [N, K, C], <W_k, pooled_k> + b_k [N, K], the maps' logits and their sigmoid [N, K, H, W].
    """
    if sum(w.shape[0] for w in weights) > MAX_MAPS and len(weights) > 1:
        half = len(weights) // 2
        first = probability_pooling(x, weights[:half], biases[:half])
        second = probability_pooling(x, weights[half:], biases[half:])
        pooled, logits, maps, prob = (torch.cat(pair, 1) for pair in zip(first, second, strict=True))
        return pooled, logits, maps, prob
    weight = torch.cat([w.flatten(1) for w in weights]) if len(weights) > 1 else weights[0].flatten(1)
    bias = None
    if any(b is not None for b in biases):
        filled = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
        bias = torch.cat(filled) if len(filled) > 1 else filled[0]
    name = backends.resolve(None, x, backends.pooling_work(weight.shape[0], torch.is_grad_enabled()))
    if name == "reference":
        pooled, prob = functional.pwap(x, weight, bias)
        maps = torch.nn.functional.conv2d(x, weight[..., None, None], bias)
    else:
        out = calls.pwap(fused_ops(name), x, functional.readable(weight, x, name), functional.readable(bias, x, name))
        pooled, prob = out.pooled, out.prob
        maps = _Logits.apply(x, weight, bias, out.logits.to(x.dtype))
    return pooled, reference.classify_pooled(pooled, weight, bias), maps, prob


class _Logits(torch.autograd.Function):
    """The maps' logits as the kernel left them; their gradient, which is seldom asked for, is the convolution's."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, logits: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs, grad = ctx.needs_input_grad, grads[0]
        to_x = torch.einsum("nkhw,kc->nchw", grad, weight.to(grad.dtype)) if needs[0] else None
        to_weight = torch.einsum("nkhw,nchw->kc", grad, x.to(grad.dtype)).to(weight.dtype) if needs[1] else None
        return to_x, to_weight, grad.sum((0, 2, 3)) if needs[2] else None, None
