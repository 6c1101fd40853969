"""Many gates on one X, each followed by batch normalisation and an average pool: one read of X, no Z, in both modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from axnet import checks, functional
from axnet.backends import transformed
from axnet.nn.norm import BatchNorm, counted, given_statistics, is_fused
from axnet.ops.layouts import accumulator, channels_last
from axnet.reference import GateFunction

CHUNK = {"cpu": 2**22, "cuda": 2**25}  # elements of X - c that exist at a time


def normalised_averages(
    x: Tensor, masks: Tensor, gates: GateFunction, norms: Sequence[nn.Module], backend: str | None = None
) -> Tensor | None:
    """BN_k(g_k m_k X + (1 - g_k) X) averaged over the pixels [N, K, C], or None where the modules have to be called.

    x [N, C, H, W]; masks [N, K, H', W']; gates: descriptors to [N, K, C]; norms: K batch normalisations of one
    eps, all of them normalising by their running statistics, or all by those of the batch, which are then updated.
    """
    fused = [norm for norm in norms if is_fused(norm)]
    if len(fused) < len(norms) or len({norm.eps for norm in fused}) > 1:
        return None
    found = [given_statistics(norm) for norm in fused]
    given = [statistics for statistics in found if statistics is not None]
    if not given:
        synchronised = any(isinstance(norm, nn.SyncBatchNorm) for norm in fused)
        return None if synchronised else _by_the_batch(x, masks, gates, fused, backend)
    affine: list[Tensor] = [t for norm in fused for t in (norm.weight, norm.bias) if t is not None]
    if len(given) < len(fused) or len(affine) < 2 * len(fused):
        return None
    averages = functional.attention_average(
        x,
        masks,
        gates,
        torch.cat(affine[::2]),
        torch.cat(affine[1::2]),
        torch.cat([mean for mean, _ in given]),
        torch.cat([var for _, var in given]),
        eps=fused[0].eps,
        fusion="concat",
        backend=backend,
    )
    return averages.unflatten(1, (len(fused), -1))


def _by_the_batch(
    x: Tensor, masks: Tensor, gates: GateFunction, norms: Sequence[BatchNorm], backend: str | None
) -> Tensor:
    """By batch statistics: mean and variance of Y follow from moments of X (docs/method.md, "A3 before an average").

    The second moments are those of X - c with c the mean over batch and pixels, as products with [1, m, m^2]; they are
    put together in float64, because a variance is a difference of large numbers where the mean is far from 0.
    """
    checks.features(x)
    m = checks.prepared_mask(masks, x)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)} for x.")
    pool = functional.masked_pool(x, m, backend=backend)
    g = gates(pool).double().transpose(0, 1)  # [K, N, C]

    shift = pool.avg.detach().to(accumulator(x.dtype)).mean(0)  # c [C]
    flat = m.flatten(2)  # [N, K, S]
    basis = torch.cat([torch.ones_like(flat[:, :1]), flat, flat * flat], 1)  # [N, 1 + 2K, S]
    sums = basis.double().sum(2)
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):  # float32 or wider
        products = _chunked_products(x, shift, basis)
    first, second = (_split(t.double(), m.shape[1]) for t in products)
    size, c = sums[:, :1], shift.double()
    s, sm, smm = size[None], sums[:, 1 : 1 + m.shape[1]].T[..., None], sums[:, 1 + m.shape[1] :].T[..., None]
    (u, um, umm), (v, vm, vmm) = first, second  # of X - c and its square, with 1, m, m^2: [K or 1, N, C]
    b = 1 - g
    sum_y = b * (u + s * c) + g * (um + sm * c)
    squares = b * b * (v + 2 * c * u + c * c * s) + g * g * (vmm + 2 * c * umm + c * c * smm)
    squares = squares + 2 * b * g * (vm + 2 * c * um + c * c * sm)
    mean = sum_y.sum(1) / count  # [K, C]
    var = (squares.sum(1) / count - mean * mean).clamp(min=0)
    z = (sum_y / s - mean[:, None]) * (var + norms[0].eps).rsqrt()[:, None]
    for norm, new_mean, new_var in zip(norms, mean.detach(), var.detach() * (count / (count - 1)), strict=True):
        _update(norm, new_mean, new_var, x.shape[0])
    normalised = [z_k if n.weight is None else z_k * n.weight + n.bias for z_k, n in zip(z, norms, strict=True)]
    return torch.stack(normalised, 1).to(x.dtype)


def _chunked_products(x: Tensor, shift: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """_products, for which X - c never exists as a whole, nor is kept for the backward pass."""
    if torch.compiler.is_compiling() or transformed() or x.device.type == "meta":
        return _products(x, shift, basis)
    images = max(1, CHUNK.get(x.device.type, 2**25) // max(1, x[:1].numel()))
    first, second = _Products.apply(x, shift, basis, images)
    return first, second


class _Products(torch.autograd.Function):
    """_products of so many images at a time; the backward pass makes X - c again. Differentiable twice."""

    @staticmethod
    def forward(x: Tensor, shift: Tensor, basis: Tensor, images: int) -> tuple[Tensor, Tensor]:
        parts = [_products(part, shift, rows) for part, rows in zip(x.split(images), basis.split(images), strict=True)]
        return torch.cat([first for first, _ in parts]), torch.cat([second for _, second in parts])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.images = inputs[3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, basis = ctx.saved_tensors
        of_x, _, of_basis, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again
            x, basis = x.view_as(x), basis.view_as(basis)  # else a basis that is made of x counts twice
            wanted = [t for t, needed in ((x, of_x), (basis, of_basis)) if needed]
            found = iter(torch.autograd.grad(_products(x, shift, basis), wanted, grads, create_graph=True))
            return next(found) if of_x else None, None, next(found) if of_basis else None, None
        grad_x = torch.empty_like(x) if of_x else None
        grad_basis = torch.empty_like(basis) if of_basis else None
        for start in range(0, len(x), ctx.images):
            chunk = slice(start, start + ctx.images)
            first, second = (g[chunk] for g in grads)
            centred = _centred(x[chunk], shift, basis.dtype)
            if grad_x is not None:
                slope = _across(second, basis[chunk], centred).mul_(centred)
                slope = _across(first, basis[chunk], centred).add_(slope, alpha=2)
                grad_x[chunk].copy_(slope.unflatten(2, x.shape[2:]))
            if grad_basis is not None:
                grad_basis[chunk] = torch.baddbmm(first @ centred, second, centred * centred)
        return grad_x, None, grad_basis, None


def _products(x: Tensor, shift: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the pixels of X - c and of its square, times every row of the basis [N, J, S]: [N, J, C] each."""
    centred = _centred(x, shift, basis.dtype).transpose(1, 2)
    return basis @ centred, basis @ (centred * centred)


def _centred(x: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """X - c [N, C, S], in X's layout."""
    if channels_last(x):
        return (x.permute(0, 2, 3, 1).flatten(1, 2).to(dtype) - shift).transpose(1, 2)
    return x.flatten(2).to(dtype) - shift[:, None]


def _across(sums: Tensor, basis: Tensor, like: Tensor) -> Tensor:
    """Transposed sums [N, J, C] times the basis [N, J, S]: [N, C, S] in the layout of another tensor."""
    if like.is_contiguous():
        return sums.transpose(1, 2) @ basis
    return (basis.transpose(1, 2) @ sums).transpose(1, 2)


def _split(rows: Tensor, masks: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, 1 + 2K, C] as those of 1 [1, N, C], of m and of m^2 [K, N, C]."""
    one, m, mm = rows.transpose(0, 1).split([1, masks, masks])
    return one, m, mm


def _update(norm: BatchNorm, mean: Tensor, var: Tensor, images: int) -> None:
    """Running statistics and count, as nn.BatchNorm2d moves them while training; an empty batch has none."""
    momentum = counted(norm)
    tracked = norm.training and norm.track_running_stats and images > 0
    if not tracked or norm.running_mean is None or norm.running_var is None:
        return
    with torch.no_grad():
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_(var.to(norm.running_var.dtype), momentum)
