"""The numbers between A3's passes, per (image, channel), in double (docs/method.md, "A3 from moments").

    G = b + sum_a w_a m_a,  Y = X G,  x' = x - c
    sum G   = b S + sum w_a M_a            sum G^2 = b^2 S + 2b sum w_a M_a + sum w_a w_b M_ab
    sum Gx' = b s1 + sum w_a t_a = Q_0     sum Y   = c sum G + Q_0
    sum Y^2 = c^2 sum G^2 + 2c (b^2 s1 + 2b sum w t + sum ww q1) + (b^2 s2 + 2b sum w t2 + sum ww q2)
    Q_a = b t_a + sum_b w_b q1_ab          E_0 = sum Y x' = c Q_0 + b s2 + sum w t2
    E_a = sum Y m_a x' = c Q_a + b t2_a + sum_b w_b q2_ab

A program holds BLOCK_C channels of one output block ("mean" has one block of B = A anatomies, "concat" has A blocks of
one) and walks all images, BLOCK_N at a time; sums over the images are reduced once, at the end. That is one launch
however many images there are, and no atomics. Rows saved per block: c, s1, t_a, Q_0, Q_a, E_0, E_a.
"""

import triton
import triton.language as tl
from axnet.kernels.tiles import pair_row


@triton.jit
def _load(ptr, valid):
    return tl.load(ptr, mask=valid, other=0.0).to(tl.float64)


@triton.jit
def _load_sum(ptr, valid, parts, step):
    """Sum of `parts` rows that lie `step` apart, in order."""
    total = tl.load(ptr, mask=valid, other=0.0).to(tl.float64)
    for i in range(1, parts):
        total += tl.load(ptr + i * step, mask=valid, other=0.0).to(tl.float64)
    return total


@triton.jit
def _base_gate(gate, valid, C, B: tl.constexpr):
    """b = 1 - mean_a g_a."""
    total = tl.zeros(valid.shape, tl.float64)
    for a in tl.range(0, B, loop_unroll_factor=B if B <= 4 else 1):
        total += _load(gate + a * C, valid)
    return 1.0 - total * (1.0 / B)


@triton.jit
def statistics_kernel(
    gate_ptr,  # [N, A, C]
    moments_ptr,  # [N, 3 + 2A + 2 pairs, C]
    mass_ptr,  # [N, A + pairs] double
    mean_ptr,  # [blocks, C]
    var_ptr,
    saved_ptr,  # [N, blocks, 4 + 3B, C]
    N,
    C,
    S,
    A: tl.constexpr,
    B: tl.constexpr,
    BATCH: tl.constexpr,
    SAVE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Batch mean and variance of Y (BATCH), and the rows for the backward pass (SAVE). Grid: (channels, blocks)."""
    PAIRS: tl.constexpr = A * (A + 1) // 2
    MOMENTS: tl.constexpr = 3 + 2 * A + 2 * PAIRS
    SAVED: tl.constexpr = 4 + 3 * B
    o = tl.program_id(1)
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    size = tl.cast(S, tl.float64)
    sum_y = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    sum_yy = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    for first in range(0, N, BLOCK_N):
        n = (first + tl.arange(0, BLOCK_N))[:, None].to(tl.int64)
        valid = (n < N) & (c < C)
        gate = gate_ptr + (n * A + o) * C + c
        moments = moments_ptr + n * MOMENTS * C + c
        mass = mass_ptr + n * (A + PAIRS) + tl.zeros([BLOCK_N, BLOCK_C], tl.int32)
        saved = saved_ptr + (n * tl.num_programs(1) + o) * SAVED * C + c
        shift = _load(moments, valid)
        s1 = _load(moments + C, valid)
        s2 = _load(moments + 2 * C, valid)
        b = _base_gate(gate, valid, C, B)
        wt = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
        wt2 = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
        wm = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
        wwm = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
        wwq1 = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
        wwq2 = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
        for i in tl.range(0, B, loop_unroll_factor=B if B <= 4 else 1):
            w = _load(gate + i * C, valid) * (1.0 / B)
            t = _load(moments + (3 + o + i) * C, valid)
            t2 = _load(moments + (3 + A + o + i) * C, valid)
            inner_m = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
            inner1 = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
            inner2 = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
            for j in tl.range(0, B, loop_unroll_factor=B if B <= 4 else 1):
                other = _load(gate + j * C, valid) * (1.0 / B)
                row = pair_row(o + tl.minimum(i, j), o + tl.maximum(i, j), A)
                inner_m += other * _load(mass + A + row, valid)
                inner1 += other * _load(moments + (3 + 2 * A + row) * C, valid)
                inner2 += other * _load(moments + (3 + 2 * A + PAIRS + row) * C, valid)
            wt += w * t
            wt2 += w * t2
            wm += w * _load(mass + o + i, valid)
            wwm += w * inner_m
            wwq1 += w * inner1
            wwq2 += w * inner2
            if SAVE:
                q = b * t + inner1
                tl.store(saved + (2 + i) * C, t, mask=valid)
                tl.store(saved + (3 + B + i) * C, q, mask=valid)
                tl.store(saved + (4 + 2 * B + i) * C, shift * q + b * t2 + inner2, mask=valid)
        q0 = b * s1 + wt
        # an absent image adds nothing: its shift and its moments were loaded as zeros
        sum_y += shift * (b * size + wm) + q0
        sum_yy += shift * shift * (b * b * size + 2.0 * b * wm + wwm)
        sum_yy += 2.0 * shift * (b * b * s1 + 2.0 * b * wt + wwq1) + (b * b * s2 + 2.0 * b * wt2 + wwq2)
        if SAVE:
            tl.store(saved, shift, mask=valid)
            tl.store(saved + C, s1, mask=valid)
            tl.store(saved + (2 + B) * C, q0, mask=valid)
            tl.store(saved + (3 + 2 * B) * C, shift * q0 + b * s2 + wt2, mask=valid)
    if BATCH:
        total = size * tl.cast(N, tl.float64)
        mean = tl.sum(sum_y, 0)[None, :] / total
        var = tl.sum(sum_yy, 0)[None, :] / total - mean * mean
        var = tl.where(var < 0.0, 0.0, var)  # rounding alone
        tl.store(mean_ptr + o * C + c, mean, mask=c < C)
        tl.store(var_ptr + o * C + c, var, mask=c < C)


@triton.jit
def coefficients_kernel(
    gate_ptr,  # [N, A, C]
    mass_ptr,  # [N, A + pairs] double
    weight_ptr,  # [blocks, C]
    mean_ptr,
    var_ptr,
    saved_ptr,  # [N, blocks, 4 + 3B, C]
    sums_ptr,  # [N, strips, blocks, 2 + 2B, C]: e0, e1, h_a, f_a
    coef_ptr,  # [N, blocks, 4 + B, C]: k1, k2, k3, b, w_a
    grad_gate_ptr,  # [N, A, C]
    grad_weight_ptr,  # [blocks, C]
    grad_bias_ptr,
    N,
    C,
    S,
    strips,
    A: tl.constexpr,
    B: tl.constexpr,
    BATCH: tl.constexpr,
    WEIGHT: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """From the sums of the first backward pass: dgamma, dbeta, the gate's gradient and dX's coefficients.

    k1 = gamma r;  k3 = -gamma r^2 dgamma / NS;  k2 = -gamma r dbeta / NS - k3 mean    (k2 = k3 = 0 without BATCH)
    dg_a = (dw_a - db) / B.    Grid: (channels, blocks).
    """
    PAIRS: tl.constexpr = A * (A + 1) // 2
    SUMS: tl.constexpr = 2 + 2 * B
    SAVED: tl.constexpr = 4 + 3 * B
    COEF: tl.constexpr = 4 + B
    o = tl.program_id(1)
    blocks = tl.num_programs(1)
    step = tl.cast(blocks, tl.int64) * SUMS * C
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    size = tl.cast(S, tl.float64)
    channel = o * C + c
    mean = _load(mean_ptr + channel, c < C)
    r = 1.0 / tl.sqrt(_load(var_ptr + channel, c < C) + EPS)
    gamma = tl.full([1, BLOCK_C], 1.0, tl.float64)
    if WEIGHT:
        gamma = _load(weight_ptr + channel, c < C)

    far = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    near = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    for first in range(0, N, BLOCK_N):
        n = (first + tl.arange(0, BLOCK_N))[:, None].to(tl.int64)
        valid = (n < N) & (c < C)
        gate = gate_ptr + (n * A + o) * C + c
        sums = sums_ptr + (n * strips * blocks + o) * SUMS * C + c
        shift = _load(saved_ptr + (n * blocks + o) * SAVED * C + c, valid)
        b = _base_gate(gate, valid, C, B)
        e0 = _load_sum(sums, valid, strips, step)
        with_d = b * e0
        with_x = b * _load_sum(sums + C, valid, strips, step)
        for i in tl.range(0, B, loop_unroll_factor=B if B <= 4 else 1):
            w = _load(gate + i * C, valid) * (1.0 / B)
            with_d += w * _load_sum(sums + (2 + i) * C, valid, strips, step)
            with_x += w * _load_sum(sums + (2 + B + i) * C, valid, strips, step)
        near += shift * with_d + with_x - mean * e0
        far += e0
    dgamma = tl.sum(near, 0)[None, :] * r
    dbeta = tl.sum(far, 0)[None, :]
    tl.store(grad_weight_ptr + channel, dgamma, mask=c < C)
    tl.store(grad_bias_ptr + channel, dbeta, mask=c < C)
    k1 = gamma * r
    k2 = tl.zeros([1, BLOCK_C], tl.float64)
    k3 = tl.zeros([1, BLOCK_C], tl.float64)
    if BATCH:
        total = size * tl.cast(N, tl.float64)
        k3 = -gamma * r * r * dgamma / total
        k2 = -gamma * r * dbeta / total - k3 * mean

    rows = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    for first in range(0, N, BLOCK_N):
        n = (first + tl.arange(0, BLOCK_N))[:, None].to(tl.int64)
        valid = (n < N) & (c < C)
        gate = gate_ptr + (n * A + o) * C + c
        sums = sums_ptr + (n * strips * blocks + o) * SUMS * C + c
        saved = saved_ptr + (n * blocks + o) * SAVED * C + c
        mass = mass_ptr + n * (A + PAIRS) + tl.zeros([BLOCK_N, BLOCK_C], tl.int32)
        coef = coef_ptr + (n * blocks + o) * COEF * C + c
        shift = _load(saved, valid)
        b = _base_gate(gate, valid, C, B)
        sum_g = b * size
        for i in tl.range(0, B, loop_unroll_factor=B if B <= 4 else 1):
            sum_g += _load(gate + i * C, valid) * (1.0 / B) * _load(mass + o + i, valid)
        sum_dy = k1 * _load_sum(sums, valid, strips, step) + k2 * size
        sum_dy += k3 * (shift * sum_g + _load(saved + (2 + B) * C, valid))
        db = shift * sum_dy + k1 * _load_sum(sums + C, valid, strips, step) + k2 * _load(saved + C, valid)
        db += k3 * _load(saved + (3 + 2 * B) * C, valid)
        tl.store(coef, k1 + rows, mask=valid)
        tl.store(coef + C, k2 + rows, mask=valid)
        tl.store(coef + 2 * C, k3 + rows, mask=valid)
        tl.store(coef + 3 * C, b, mask=valid)
        for i in tl.range(0, B, loop_unroll_factor=B if B <= 4 else 1):
            mass_i = _load(mass + o + i, valid)
            sum_gm = b * mass_i
            for j in tl.range(0, B, loop_unroll_factor=B if B <= 4 else 1):
                row = pair_row(o + tl.minimum(i, j), o + tl.maximum(i, j), A)
                sum_gm += _load(gate + j * C, valid) * (1.0 / B) * _load(mass + A + row, valid)
            sum_dym = k1 * _load_sum(sums + (2 + i) * C, valid, strips, step) + k2 * mass_i
            sum_dym += k3 * (shift * sum_gm + _load(saved + (3 + B + i) * C, valid))
            dw = shift * sum_dym + k1 * _load_sum(sums + (2 + B + i) * C, valid, strips, step)
            dw += k2 * _load(saved + (2 + i) * C, valid) + k3 * _load(saved + (4 + 2 * B + i) * C, valid)
            tl.store(coef + (4 + i) * C, _load(gate + i * C, valid) * (1.0 / B), mask=valid)
            tl.store(grad_gate_ptr + (n * A + o + i) * C + c, (dw - db) * (1.0 / B), mask=valid)
