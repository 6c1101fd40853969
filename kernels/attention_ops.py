"""masked_moments and gate_norm as Triton ops: the contract of csrc/ops.cpp, in the namespace axnet_triton.

Launches (N > 0): masked_moments 1, and 1 more where an image has several strips; gate_norm 1, and 1 more with batch
statistics or saved rows; gate_norm_backward 2, and masked_moments' and 1 more without saved rows;
masked_moments_backward 1, and 1 more for the gradient of the masks.
"""

import torch
import triton
from axnet.kernels import blend, blend_backward, combine, moments, statistics
from axnet.kernels.launch import (
    PIXELS,
    PROGRAMS,
    mapping_tile,
    on_its_device,
    strides,
    strips_of,
    summing_tile,
    walkable,
)
from axnet.kernels.register import register
from torch import Tensor
from torch.library import wrap_triton

from axnet.ops import calls, rows
from axnet.ops.layouts import channels_last, empty_features

SHARED_ANATOMIES = 4  # anatomies whose accumulators fit into one program
IMAGES, CHANNELS = 64, 8  # tile of the algebra between the passes


@register("masked_moments")
@on_its_device
def masked_moments(
    x: Tensor, mask: Tensor, second: bool, positions: bool, blocks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Descriptors, moments and positions of the maxima in one read of X."""
    x = walkable(x)
    n, c, h, w = x.shape
    a, s = mask.shape[1], h * w
    descriptors = mask.new_empty((n, rows.descriptor_rows(a), c))
    moment = mask.new_empty((n if second else 0, rows.moment_rows(a), c))
    argmax = mask.new_empty((n if positions else 0, 1 + a, c), dtype=torch.int32)
    mass = mask.new_empty((n, rows.mass_rows(a)), dtype=torch.float64)
    link = x.new_zeros(()).expand(n, blocks * c, h, w) if blocks else x.new_empty((0,))
    coef_rows = rows.coef_rows(1 if blocks > 1 else a)
    coef_link = mask.new_zeros(()).expand(n, blocks, coef_rows, c) if blocks else mask.new_empty((0,))
    if n == 0:
        return descriptors, moment, argmax, mass, link, coef_link

    last = channels_last(x)
    tile = summing_tile(x, a)
    strips, strip = strips_of(n, c, s, tile["BLOCK_C"])
    outputs = (descriptors, moment, argmax)
    parts: tuple[Tensor, ...] = outputs
    if strips > 1:
        parts = tuple(t.new_empty((t.shape[0], strips, *t.shape[1:])) for t in outputs)
    shared = a if a <= SHARED_ANATOMIES else 1
    programs = n * rows.mass_rows(a) + n * triton.cdiv(c, tile["BLOCK_C"]) * strips * (a // shared)
    wrap_triton(moments.moments_kernel)[(programs,)](
        x,
        mask,
        *parts,
        mass,
        *strides(x),
        n,
        c,
        s,
        strips,
        strip,
        A=a,
        ROWS=shared,
        SECOND=second,
        POSITIONS=positions,
        LAST=last,
        EVEN=s % PIXELS == 0,
        SINGLE=strips == 1,
        **tile,
    )
    if strips > 1:
        block = 128
        summed = rows.descriptor_rows(a) + (rows.moment_rows(a) if second else 0)
        wrap_triton(combine.combine_kernel)[(n * triton.cdiv(c, block), summed)](
            *parts, *outputs, c, strips, A=a, SECOND=second, POSITIONS=positions, BLOCK_C=block
        )
    return descriptors, moment, argmax, mass, link, coef_link


@register("masked_moments_backward")
@on_its_device
def masked_moments_backward(
    x: Tensor,
    mask: Tensor,
    argmax: Tensor,
    grad_descriptors: Tensor,
    grad_z: Tensor | None,
    coef: Tensor | None,
    input_grad: bool,
    mask_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of X, of the descriptors and of what came through `link` together, in one write."""
    x = walkable(x)
    n, c, h, w = x.shape
    a, s, last = mask.shape[1], h * w, channels_last(x)
    dx = empty_features(x, n if input_grad else 0, c)
    dmask = mask.new_empty((n if mask_grad else 0, a, h, w))
    if n == 0:
        return dx, dmask
    delta = grad_descriptors.contiguous()
    blocks = 0 if grad_z is None else grad_z.shape[1] // c
    d = x if grad_z is None else walkable(grad_z, last)
    q = delta if coef is None else coef.contiguous()
    if input_grad:
        tile = mapping_tile(x, last, a)
        strips, strip = strips_of(n, c, s, tile["BLOCK_C"], 4 * PROGRAMS)
        wrap_triton(blend_backward.input_kernel)[(n * triton.cdiv(c, tile["BLOCK_C"]) * strips,)](
            x,
            d,
            mask,
            q,
            delta,
            argmax,
            dx,
            *strides(x),
            *strides(d),
            *strides(dx),
            c,
            s,
            strips,
            strip,
            A=a,
            BLOCKS=blocks,
            LAST=last,
            **tile,
        )
    if mask_grad:
        sides = {"BLOCK_C": 64, "BLOCK_S": 16} if last else {"BLOCK_C": 16, "BLOCK_S": 64}
        wrap_triton(blend_backward.mask_kernel)[(n * a * triton.cdiv(s, sides["BLOCK_S"]),)](
            x, d, mask, q, delta, argmax, dmask, *strides(x), *strides(d), c, s, A=a, BLOCKS=blocks, LAST=last, **sides
        )
    return dx, dmask


def _statistics(
    gate: Tensor, moments: Tensor, mass: Tensor, mean: Tensor, var: Tensor, saved: Tensor, pixels: int, batch: bool
) -> None:
    """Fill mean and var where batch says so, and saved where it has rows to fill."""
    n, a, c = gate.shape
    blocks = saved.shape[1]
    wrap_triton(statistics.statistics_kernel)[(triton.cdiv(c, CHANNELS), blocks)](
        gate,
        moments,
        mass,
        mean,
        var,
        saved,
        n,
        c,
        pixels,
        A=a,
        B=a // blocks,
        BATCH=batch,
        SAVE=saved.shape[0] > 0,
        BLOCK_N=IMAGES,
        BLOCK_C=CHANNELS,
    )


@register("gate_norm")
@on_its_device
def gate_norm(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch statistics of the gated blend from the moments, then Z in one read and one write."""
    x = walkable(x)
    n, c, h, w = x.shape
    a, s, last, batch = mask.shape[1], h * w, channels_last(x), running_mean is None
    blocks = a if concat else 1
    z = empty_features(x, n, blocks * c)
    mean, var = mask.new_empty((blocks * c,)), mask.new_empty((blocks * c,))
    saved = mask.new_empty((n if save else 0, blocks, rows.saved_rows(a // blocks), c))
    if n == 0:
        return z, mean.zero_(), var.zero_(), saved
    gate = gate.contiguous()
    if batch or save:
        if moments is None or moments.shape[0] == 0:
            raise ValueError("gate_norm: moments are needed for batch statistics.")
        _statistics(gate, moments, mass, mean, var, saved, s, batch)
    tile = mapping_tile(x, last, a)
    strips, strip = strips_of(n, c, s, tile["BLOCK_C"], 4 * PROGRAMS)
    wrap_triton(blend.apply_kernel)[(n * triton.cdiv(c, tile["BLOCK_C"]) * strips * blocks,)](
        x,
        z,
        mask,
        gate,
        mean if weight is None else weight,
        mean if bias is None else bias,
        mean if running_mean is None else running_mean,
        var if running_var is None else running_var,
        mean,
        var,
        *strides(x),
        *strides(z),
        c,
        s,
        strips,
        strip,
        A=a,
        BLOCKS=blocks,
        WEIGHT=weight is not None,
        BIAS=bias is not None,
        KEEP=not batch,
        EPS=eps,
        LAST=last,
        **tile,
    )
    return z, mean, var, saved


@register("gate_norm_backward")
@on_its_device
def gate_norm_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One read of D and X; the coefficients of dX are left to masked_moments_backward."""
    x = walkable(x)
    n, c, h, w = x.shape
    a, s, last = mask.shape[1], h * w, channels_last(x)
    blocks = a if concat else 1
    b = a // blocks
    coef, grad_gate = mask.new_empty((n, blocks, rows.coef_rows(b), c)), mask.new_empty((n, a, c))
    grad_weight, grad_bias = mask.new_empty((blocks * c,)), mask.new_empty((blocks * c,))
    if n == 0:
        return coef, grad_gate, grad_weight.zero_(), grad_bias.zero_()
    d, gate = walkable(grad_z, last), gate.contiguous()
    if saved.shape[0] == 0:
        moments = calls.Moments(*masked_moments(x, mask, True, False, 0)).moments
        saved = mask.new_empty((n, blocks, rows.saved_rows(b), c))
        _statistics(gate, moments, mass, mean, var, saved, s, False)
    tile = summing_tile(x, b)
    strips, strip = strips_of(n, c, s, tile["BLOCK_C"])
    sums = mask.new_empty((n, strips, blocks, rows.sum_rows(b), c))
    wrap_triton(blend.sums_kernel)[(n * triton.cdiv(c, tile["BLOCK_C"]) * strips * blocks,)](
        x,
        d,
        mask,
        saved,
        sums,
        *strides(x),
        *strides(d),
        c,
        s,
        strips,
        strip,
        A=a,
        BLOCKS=blocks,
        LAST=last,
        EVEN=s % PIXELS == 0,
        **tile,
    )
    wrap_triton(statistics.coefficients_kernel)[(triton.cdiv(c, CHANNELS), blocks)](
        gate,
        mass,
        mean if weight is None else weight,
        mean,
        var,
        saved,
        sums,
        coef,
        grad_gate,
        grad_weight,
        grad_bias,
        n,
        c,
        s,
        strips,
        A=a,
        B=b,
        BATCH=batch_statistics,
        WEIGHT=weight is not None,
        EPS=eps,
        BLOCK_N=IMAGES,
        BLOCK_C=CHANNELS,
    )
    return coef, grad_gate, grad_weight, grad_bias
