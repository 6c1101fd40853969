"""PWAP with few maps: a program holds all channels of a few pixels at a time, so that X is read once.

    L = W X + b;  w_s = p_s / p_max,  p = sigmoid(L);  pooled = sum w X / sum w
    a = <dpooled, X>;  dL = (a - <dpooled, pooled>) share (1 - p) + dprob p (1 - p),  share = w / sum w
    dX = sum_k share_k dpooled_k + W_k dL_k;  dW = sum dL X;  db = sum dL

A program walks a strip of the pixels of one image, LANES x GROUP pixels at a time (axnet.kernels.tiles): the tile gives
the logits by a sum over its channels, and then the numerators by a sum over the groups. Numerators are relative to the
largest logit that their lane has met so far, and are rescaled when it rises. The strips of an image are merged by
axnet.kernels.pooling.pool_combine_kernel, those of dW by pooling_backward.weight_gradient_kernel.
"""

import triton
import triton.language as tl
from axnet.kernels.blend import folded
from axnet.kernels.pooling import log_sigmoid, probability
from axnet.kernels.tiles import madd, repeat


@triton.jit
def _of_channels(v, LAST: tl.constexpr):
    """[BLOCK_C] beside a tile: [BLOCK_C, LANES, GROUP], or [GROUP, LANES, BLOCK_C] where channels are adjacent."""
    if LAST:
        out = v[None, None, :]
    else:
        out = v[:, None, None]
    return out


@triton.jit
def _pixels(first, LANES: tl.constexpr, GROUP: tl.constexpr, LAST: tl.constexpr):
    """Pixels [LANES, GROUP] of the tile at pixel `first`, or [GROUP, LANES]."""
    lane = tl.arange(0, LANES) * GROUP
    group = tl.arange(0, GROUP)
    if LAST:
        out = first + group[:, None] + lane[None, :]
    else:
        out = first + lane[:, None] + group[None, :]
    return out


@triton.jit
def _of_pixels(v, LAST: tl.constexpr):
    """[LANES, GROUP] (or [GROUP, LANES]) beside a tile."""
    if LAST:
        out = v[:, :, None]
    else:
        out = v[None, :, :]
    return out


@triton.jit
def _of_lanes(v, LAST: tl.constexpr):
    """[LANES] beside an accumulator [BLOCK_C, LANES], or [LANES, BLOCK_C]."""
    if LAST:
        out = v[:, None]
    else:
        out = v[None, :]
    return out


@triton.jit
def _offsets(c, s, stride, LAST: tl.constexpr):
    if LAST:
        offsets = c[None, None, :] + s.to(tl.int64)[:, :, None] * stride
    else:
        offsets = (c.to(tl.int64) * stride)[:, None, None] + s[None, :, :]
    return offsets


@triton.jit
def pool_few_kernel(
    x_ptr,  # [N, C, S]
    weight_ptr,  # [K, C]; this and bias of any floating type
    bias_ptr,  # [K]
    numerator_ptr,  # [N, strips, K, C]; pooled [N, K, C] where an image is one strip
    norm_ptr,  # [N, strips, 2, K]: largest logit, sum of w
    prob_ptr,  # [N, K, S]
    logits_ptr,  # [N, K, S]
    gate_ptr,  # [N, A, C]; this and the rest of A3's where A > 0
    mask_ptr,  # [N, A, S]
    norm_weight_ptr,  # [C]
    norm_bias_ptr,
    mean_ptr,
    var_ptr,
    image_stride,
    stride,
    C,
    S,
    strips,
    strip_pixels,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    A: tl.constexpr,
    NORM_WEIGHT: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    EPS: tl.constexpr,
    SINGLE: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Grid: (image, strip)."""
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    CHANNELS: tl.constexpr = 2 if LAST else 0
    PIXELS: tl.constexpr = 0 if LAST else 1  # axis of the group in [LANES, GROUP] or [GROUP, LANES]
    task = tl.program_id(0)
    n = tl.cast(task // strips, tl.int64)
    c = tl.arange(0, BLOCK_C)
    valid = c < C
    begin = (task % strips) * strip_pixels
    end = tl.minimum(begin + strip_pixels, S)
    weights = ()
    for k in tl.static_range(K):
        weights = weights + (tl.load(weight_ptr + k * C + c, mask=valid, other=0.0).to(acc),)
    if A > 0:
        mean = tl.load(mean_ptr + c, mask=valid, other=0.0).to(acc)
        var = tl.load(var_ptr + c, mask=valid, other=1.0).to(acc)
        fold = folded(
            gate_ptr + n * A * C,
            norm_weight_ptr,
            norm_bias_ptr,
            mean,
            var,
            c,
            valid,
            C,
            acc,
            A,
            NORM_WEIGHT,
            NORM_BIAS,
            EPS,
        )
    if LAST:
        zero = tl.zeros([LANES, BLOCK_C], acc)
    else:
        zero = tl.zeros([BLOCK_C, LANES], acc)
    numerators = repeat(zero, K)
    tops = repeat(tl.zeros([LANES], acc) - 3.0e38, K)
    masses = repeat(tl.zeros([LANES], acc), K)
    for first in tl.range(begin, end, LANES * GROUP, num_stages=3):
        s = _pixels(first, LANES, GROUP, LAST)
        inside = s < end
        there = _of_channels(valid, LAST) & _of_pixels(inside, LAST)
        stored = tl.load(x_ptr + n * image_stride + _offsets(c, s, stride, LAST), mask=there, other=0.0)
        x = stored.to(acc)
        if A > 0:
            gate = _of_channels(tl.reshape(fold[0], [BLOCK_C]), LAST)
            for a in tl.static_range(A):
                m = tl.load(mask_ptr + (n * A + a) * S + s, mask=inside, other=0.0).to(acc)
                gate = madd(_of_channels(tl.reshape(fold[1 + a], [BLOCK_C]), LAST), _of_pixels(m, LAST), gate)
            z = madd(x, gate, _of_channels(tl.reshape(fold[1 + A], [BLOCK_C]), LAST))
            x = z.to(stored.dtype).to(acc)  # as if it had been written
        next_numerators = ()
        next_tops = ()
        next_masses = ()
        for k in tl.static_range(K):
            logits = tl.sum(x * _of_channels(weights[k], LAST), CHANNELS)
            if BIAS:
                logits += tl.load(bias_ptr + k).to(acc)
            top = tl.maximum(tops[k], tl.max(tl.where(inside, logits, -3.0e38), PIXELS))
            p, w = probability(logits, _of_lanes(top, not LAST))
            w = tl.where(inside, w, 0.0)
            out = (n * K + k) * S + s
            tl.store(prob_ptr + out, p, mask=inside)
            tl.store(logits_ptr + out, logits, mask=inside)
            rescale = tl.exp(log_sigmoid(tops[k]) - log_sigmoid(top))
            part = tl.sum(x * _of_pixels(w, LAST), 0 if LAST else 2)
            next_numerators = next_numerators + (madd(numerators[k], _of_lanes(rescale, LAST), part),)
            next_masses = next_masses + (masses[k] * rescale + tl.sum(w, PIXELS),)
            next_tops = next_tops + (top,)
        numerators = next_numerators
        tops = next_tops
        masses = next_masses
    place = tl.cast(task, tl.int64)
    for k in tl.static_range(K):
        top = tl.max(tops[k], 0)
        scale = tl.exp(log_sigmoid(tops[k]) - log_sigmoid(top))
        mass = tl.sum(masses[k] * scale, 0)
        total = tl.sum(numerators[k] * _of_lanes(scale, LAST), 0 if LAST else 1)
        if SINGLE:
            total = total / mass
        tl.store(norm_ptr + place * 2 * K + k, top)
        tl.store(norm_ptr + place * 2 * K + K + k, mass)
        tl.store(numerator_ptr + (place * K + k) * C + c, total, mask=valid)


@triton.jit
def pool_few_backward_kernel(
    grad_pooled_ptr,  # [N, K, C]
    grad_prob_ptr,  # [N, K, S]
    x_ptr,  # [N, C, S]
    weight_ptr,  # [K, C]
    logits_ptr,  # [N, K, S]
    norm_ptr,  # [N, 2, K]
    pooled_ptr,  # [N, K, C]
    dx_ptr,  # [N, C, S]
    part_weight_ptr,  # [N strips, K, C]
    part_bias_ptr,  # [N strips, K]
    x_image,
    x_stride,
    dx_image,
    dx_stride,
    C,
    S,
    strips,
    strip_pixels,
    K: tl.constexpr,
    PROB: tl.constexpr,
    INPUT: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Grid: (image, strip)."""
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    CHANNELS: tl.constexpr = 2 if LAST else 0
    task = tl.program_id(0)
    n = tl.cast(task // strips, tl.int64)
    c = tl.arange(0, BLOCK_C)
    valid = c < C
    begin = (task % strips) * strip_pixels
    end = tl.minimum(begin + strip_pixels, S)
    if LAST:
        zero = tl.zeros([LANES, BLOCK_C], acc)
        none = tl.zeros([GROUP, LANES], acc)
    else:
        zero = tl.zeros([BLOCK_C, LANES], acc)
        none = tl.zeros([LANES, GROUP], acc)
    weights = ()
    grads = ()
    means = ()
    products = repeat(zero, K)
    biases = repeat(none, K)
    for k in tl.static_range(K):
        grad = tl.load(grad_pooled_ptr + (n * K + k) * C + c, mask=valid, other=0.0).to(acc)
        pooled = tl.load(pooled_ptr + (n * K + k) * C + c, mask=valid, other=0.0).to(acc)
        weights = weights + (tl.load(weight_ptr + k * C + c, mask=valid, other=0.0).to(acc),)
        grads = grads + (grad,)
        means = means + (tl.sum(grad * pooled, 0),)
    for first in tl.range(begin, end, LANES * GROUP, num_stages=3):
        s = _pixels(first, LANES, GROUP, LAST)
        inside = s < end
        there = _of_channels(valid, LAST) & _of_pixels(inside, LAST)
        x = tl.load(x_ptr + n * x_image + _offsets(c, s, x_stride, LAST), mask=there, other=0.0).to(acc)
        dx = tl.zeros_like(x)
        next_products = ()
        next_biases = ()
        for k in tl.static_range(K):
            a = tl.sum(x * _of_channels(grads[k], LAST), CHANNELS)
            place = (n * K + k) * S + s
            logits = tl.load(logits_ptr + place, mask=inside, other=0.0)
            top = tl.load(norm_ptr + n * 2 * K + k)
            mass = tl.load(norm_ptr + n * 2 * K + K + k)
            p, w = probability(logits, top)
            share = tl.where(inside, w / mass, 0.0)
            dl = (a - means[k]) * share * (1.0 - p)
            if PROB:
                dl += tl.load(grad_prob_ptr + place, mask=inside, other=0.0).to(acc) * p * (1.0 - p)
            dl = tl.where(inside, dl, 0.0)
            part = tl.sum(x * _of_pixels(dl, LAST), 0 if LAST else 2)
            next_products = next_products + (products[k] + part,)
            next_biases = next_biases + (biases[k] + dl,)
            if INPUT:
                dx = madd(_of_channels(grads[k], LAST), _of_pixels(share, LAST), dx)
                dx = madd(_of_channels(weights[k], LAST), _of_pixels(dl, LAST), dx)
        products = next_products
        biases = next_biases
        if INPUT:
            tl.store(dx_ptr + n * dx_image + _offsets(c, s, dx_stride, LAST), dx, mask=there)
    place = tl.cast(task, tl.int64)
    for k in tl.static_range(K):
        tl.store(part_bias_ptr + place * K + k, tl.sum(biases[k]))
        total = tl.sum(products[k], 0 if LAST else 1)
        tl.store(part_weight_ptr + (place * K + k) * C + c, total, mask=valid)
