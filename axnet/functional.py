"""Public functions: check the arguments, choose the backend, call one op.

Every function takes `backend=`: "native" (compiled kernels), "triton" (GPU), "reference" (plain PyTorch, differentiable
twice) or None for the choice of `axnet.use_backend` and AXNET_BACKEND. A named backend that cannot serve raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from axnet import backends, checks, reference
from axnet.ops import calls, fused_ops, has_gated_pwap
from axnet.ops.attention import keeps_rows
from axnet.ops.layouts import accumulator
from axnet.reference import GateFunction
from axnet.types import DescriptorGate, Fusion, MaskedPool

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "GateFunction",
    "MaskedPool",
    "anatomy_attention",
    "attention_average",
    "attention_blend",
    "attention_pwap",
    "masked_pool",
    "pcam",
    "pwap",
]


def masked_pool(x: Tensor, mask: Tensor, *, backend: str | None = None) -> MaskedPool:
    """Average and maximum of X and of every m_a X over the pixels, in one read of X (docs/method.md, "A3").

    Args:
        x: features [N, C, H, W], float32, float64, bfloat16 or float16, any strides.
        mask: soft masks [N, A, H', W'], 1 <= A <= 16: floating in [0, 1], bool, or uint8 (255 = 1); resized to H, W
            (bilinear, align_corners=False) where the resolution differs. Differentiable when floating.
        backend: see the module.

    Returns:
        MaskedPool(avg [N, C], max [N, C], masked_avg [N, A, C], masked_max [N, A, C]) in x's type; accumulated in
        float32 or better. The gradient of a maximum goes to its first position.

    Raises:
        TypeError, ValueError: a wrong dtype, rank, size, device or mask value, in one sentence.
        RuntimeError: a named backend cannot serve x's device.
    """
    checks.features(x)
    m = checks.prepared_mask(mask, x)
    name = backends.resolve(backend, x, "descriptors")
    if name == "reference":
        return reference.masked_pool(x, m)
    return _named(_descriptors(x, m, name).to(x.dtype), m.shape[1])


def _descriptors(x: Tensor, m: Tensor, name: str) -> Tensor:
    """[N, 2+2A, C] in the accumulation type."""
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or m.requires_grad)
    return calls.masked_moments(fused_ops(name), x, m, second=False, positions=needs_grad, blocks=0).descriptors


def _named(descriptors: Tensor, anatomies: int) -> MaskedPool:
    masked = descriptors[:, 2:]
    return MaskedPool(descriptors[:, 0], descriptors[:, 1], masked[:, :anatomies], masked[:, anatomies:])


def anatomy_attention(
    x: Tensor,
    mask: Tensor,
    gate: GateFunction,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    fusion: Fusion = "mean",
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Anatomy aware attention: Z = BN(blend of X and m_a X by the channel gates) (docs/method.md, "A3").

    Args:
        x: features [N, C, H, W], as in masked_pool.
        mask: soft masks [N, A, H', W'], as in masked_pool.
        gate: called once with the MaskedPool of x's type, returns the channel gates [N, A, C], any floating type.
        weight, bias: of the batch normalisation [C], or [A*C] for fusion "concat"; None for 1 and 0.
        running_mean, running_var: [C] or [A*C]; used when not training, updated in place when training; None means
            batch statistics in either mode.
        training: whether to normalise by the batch's statistics.
        momentum, eps: as in torch.nn.functional.batch_norm.
        fusion: "mean" over the anatomies, or "concat".
        backend: see the module.
        process_group: of torch.distributed; batch statistics are then those of all its processes together, as in
            torch.nn.SyncBatchNorm: one all-reduce forward, one backward, which every process has to reach.

    Returns:
        Z [N, C, H, W], or [N, A*C, H, W] for "concat", in x's type and layout.

    Raises:
        TypeError, ValueError: wrong arguments, in one sentence; one value per channel when training.
        RuntimeError: a named backend cannot serve x's device.
    """
    checks.features(x)
    m = checks.prepared_mask(mask, x)
    channels = checks.normalisation(x, m, fusion, weight, bias, running_mean, running_var, training)
    batch_statistics = training or running_mean is None
    group = process_group if batch_statistics and _shared(process_group) else None
    if batch_statistics and x.shape[0] * x.shape[2] * x.shape[3] == 1 and group is None:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)} for x.")

    recorded = torch.is_grad_enabled()
    name = backends.resolve(backend, x, "attention, training" if recorded else "attention")
    if name == "reference":
        kept = [running_mean, running_var] if not batch_statistics or training else [None, None]
        checked_gate = _checked(gate, (x.shape[0], m.shape[1], x.shape[1]))
        rest = {"training": batch_statistics, "momentum": momentum, "eps": eps, "fusion": fusion, "group": group}
        return reference.anatomy_attention(x, m, checked_gate, weight, bias, *kept, **rest)  # type: ignore[arg-type]

    ops = fused_ops(name)
    blocks = m.shape[1] if fusion == "concat" else 1
    keep = recorded and (group is not None or keeps_rows(x, m.shape[1], blocks))
    second = batch_statistics or keep
    concat = blocks > 1
    first = calls.masked_moments(ops, x, m, second=second, positions=recorded, blocks=blocks if recorded else 0)
    g = readable(_gates(gate, first.descriptors, x, m.shape[1], name), x, name)
    weight, bias = readable(weight, x, name), readable(bias, x, name)
    if group is not None:
        from axnet.ops import synchronised
        from axnet.reference.synchronised import update_running

        z, found = synchronised.gate_norm(
            ops, x, m, g, first, weight=weight, bias=bias, eps=eps, concat=concat, group=group
        )
        update_running(running_mean, running_var, found, momentum)
        return z
    z, mean, var, _ = calls.gate_norm(
        ops,
        x.detach() if recorded else x,
        m.detach() if recorded else m,
        g,
        moments=first.moments if second else None,
        mass=first.mass,
        weight=weight,
        bias=bias,
        running_mean=None if batch_statistics else readable(running_mean, x, name),
        running_var=None if batch_statistics else readable(running_var, x, name),
        eps=eps,
        concat=concat,
        save=keep,
        link=first.link,
        coef_link=first.coef_link,
    )
    if training and running_mean is not None and running_var is not None and x.shape[0] > 0:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    assert z.shape[1] == channels
    return z


def _shared(group: ProcessGroup | None) -> bool:
    """Whether a group has other processes beside this one; one that this is not part of has none for it."""
    return group is not None and torch.distributed.get_world_size(group) > 1


def attention_blend(
    x: Tensor, mask: Tensor, gate: GateFunction, *, fusion: Fusion = "mean", backend: str | None = None
) -> Tensor:
    """The gated blend Y of anatomy_attention, before any normalisation: for one that is not a batch normalisation.

    Args:
        x, mask, gate, fusion, backend: as in anatomy_attention.

    Returns:
        Y [N, C, H, W], or [N, A*C, H, W] for "concat", in x's type and layout.

    Raises:
        As anatomy_attention.
    """
    checks.features(x)
    anatomies = mask.shape[1] if isinstance(mask, Tensor) and mask.dim() == 4 else 1
    channels = x.shape[1] * (anatomies if fusion == "concat" else 1)
    mean, var = x.new_zeros(channels), x.new_ones(channels)
    return anatomy_attention(x, mask, gate, None, None, mean, var, eps=0.0, fusion=fusion, backend=backend)


def _gates(gate: GateFunction, descriptors: Tensor, x: Tensor, anatomies: int, name: str) -> Tensor:
    """[N, A, C] of any floating type, from descriptors [N, 2+2A, C] in the accumulation type."""
    if isinstance(gate, DescriptorGate) and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return gate.of_descriptors(descriptors, name)
    return _checked(gate, (x.shape[0], anatomies, x.shape[1]))(_named(descriptors.to(x.dtype), anatomies))


def _checked(gate: GateFunction, shape: tuple[int, int, int]) -> GateFunction:
    def checked(pool: MaskedPool) -> Tensor:
        g = gate(pool)
        if g.shape != shape or not g.is_floating_point():
            raise ValueError(
                f"gate returned {g.dtype} of shape {list(g.shape)}, "
                f"expected a floating type of shape {list(shape)} (N, A, C)."
            )
        return g

    return checked


def attention_average(
    x: Tensor,
    mask: Tensor,
    gate: GateFunction,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    eps: float = 1e-5,
    fusion: Fusion = "mean",
    backend: str | None = None,
) -> Tensor:
    """Average over the pixels of anatomy_attention's Z under running statistics, in one read of X and without Z.

    The average of Z follows from the descriptors (docs/method.md, "A3 before an average"). With fusion "concat" the
    anatomies are the masks of as many gates on one X, which is still read once.

    Args:
        x, mask, gate, weight, bias, eps, fusion, backend: as in anatomy_attention.
        running_mean, running_var: [C], or [A*C] for "concat"; the batch's own statistics do not follow from the
            descriptors.

    Returns:
        [N, C], or [N, A*C] for "concat", in x's type.

    Raises:
        As anatomy_attention.
    """
    checks.features(x)
    m = checks.prepared_mask(mask, x)
    if running_mean is None or running_var is None:
        raise ValueError("running_mean or running_var is None, expected both: without them Z has to be computed.")
    checks.normalisation(x, m, fusion, weight, bias, running_mean, running_var, False)
    name = backends.resolve(backend, x, "descriptors")
    if name == "reference":
        checked_gate = _checked(gate, (x.shape[0], m.shape[1], x.shape[1]))
        z = reference.anatomy_attention(
            x, m, checked_gate, weight, bias, running_mean, running_var, training=False, eps=eps, fusion=fusion
        )
        return z.mean((2, 3))
    descriptors = _descriptors(x, m, name)
    g = _gates(gate, descriptors, x, m.shape[1], name).to(descriptors.dtype)
    average, masked = descriptors[:, :1], descriptors[:, 2 : 2 + m.shape[1]]
    y = average + g * (masked - average)  # [N, A, C]
    y = y.mean(1) if fusion == "mean" else y.flatten(1)
    scale = (running_var.to(y.dtype) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(y.dtype)
    z = (y - running_mean.to(y.dtype)) * scale
    return (z if bias is None else z + bias.to(y.dtype)).to(x.dtype)


@overload
def readable(t: Tensor, x: Tensor, name: str) -> Tensor: ...
@overload
def readable(t: Tensor | None, x: Tensor, name: str) -> Tensor | None: ...
def readable(t: Tensor | None, x: Tensor, name: str) -> Tensor | None:
    """A gate, weight or statistic as the backend's kernels read it: the native ones know every floating type."""
    if t is None:
        return None
    if name == "native":
        return t if t.dim() == 3 or t.is_contiguous() else t.contiguous()  # a gate's rows are gathered there
    dtype = accumulator(x.dtype)
    return t if t.dtype == dtype and t.is_contiguous() else t.to(dtype).contiguous()


def pwap(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Probability-weighted average pooling in one read of X (docs/method.md, "PWAP").

    Args:
        x: features [N, C, H, W], float32, float64, bfloat16 or float16, any strides.
        weight: one 1x1 convolution row per probability map [K, C], 1 <= K <= 64, any floating type.
        bias: [K] or None.
        backend: see the module.

    Returns:
        pooled [N, K, C] and the probability maps [N, K, H, W], in x's type. Normalised in the log domain: finite
        logits never give NaN.

    Raises:
        TypeError, ValueError: wrong arguments, in one sentence.
        RuntimeError: a named backend cannot serve x's device.
    """
    checks.features(x)
    checks.pooling(x, weight, bias)
    name = backends.resolve(backend, x, backends.pooling_work(weight.shape[0], torch.is_grad_enabled()))
    if name == "reference":
        return reference.pwap(x, weight, bias)
    out = calls.pwap(fused_ops(name), x, readable(weight, x, name), readable(bias, x, name))
    return out.pooled, out.prob


def attention_pwap(
    x: Tensor,
    mask: Tensor,
    gate: GateFunction,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """PWAP of anatomy_attention's Z under running statistics, for inference (docs/method.md, "A3 before PWAP").

    The CUDA and Triton kernels make Z in a tile and never write it; on a CPU, in the reference, and wherever gradients
    are recorded, Z is computed and pooled.

    Args:
        x, mask, gate, eps, backend: as in anatomy_attention, with fusion "mean".
        norm_weight, norm_bias, running_mean, running_var: of the batch normalisation [C].
        weight, bias: of the probability maps, as in pwap.

    Returns:
        pooled [N, K, C] and the probability maps [N, K, H, W], in x's type.

    Raises:
        As anatomy_attention and pwap.
    """
    checks.features(x)
    checks.pooling(x, weight, bias)
    name = backends.resolve(backend, x, backends.pooling_work(weight.shape[0], torch.is_grad_enabled()))
    if torch.is_grad_enabled() or not has_gated_pwap(name, x.device.type):
        norm = (norm_weight, norm_bias, running_mean, running_var)
        z = anatomy_attention(x, mask, gate, *norm, eps=eps, backend=backend)
        return pwap(z, weight, bias, backend=backend)
    m = checks.prepared_mask(mask, x)
    if running_mean is None or running_var is None:
        raise ValueError("running_mean or running_var is None, expected both: without them Z has to be computed.")
    checks.normalisation(x, m, "mean", norm_weight, norm_bias, running_mean, running_var, False)
    g = _gates(gate, _descriptors(x, m, name), x, m.shape[1], name)
    return calls.gated_pwap(
        fused_ops(name),
        x,
        m,
        readable(g, x, name),
        norm_weight=readable(norm_weight, x, name),
        norm_bias=readable(norm_bias, x, name),
        mean=readable(running_mean, x, name),
        var=readable(running_var, x, name),
        eps=eps,
        weight=readable(weight, x, name),
        bias=readable(bias, x, name),
    )


def pcam(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """PCAM pooling (arXiv 2005.14480): logit_k = <W_k, pooled_k> + b_k with the weights of the maps.

    Args:
        x: features [N, C, H, W], as in pwap.
        weight: [K, C].
        bias: [K] or None.
        backend: see the module.

    Returns:
        logits [N, K] and the probability maps [N, K, H, W], in x's type.

    Raises:
        As pwap.
    """
    pooled, prob = pwap(x, weight, bias, backend=backend)
    return reference.classify_pooled(pooled, weight, bias), prob
