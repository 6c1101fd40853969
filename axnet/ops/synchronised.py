"""Batch normalisation over several processes: sums of Y from the moments, one all-reduce forward, one backward.

Forward [count, sum Y, sum Y^2], backward [dbeta, dgamma], in float64 (docs/method.md, "Many processes"). Gradients of
the parameters stay those of the process, as torch.nn.SyncBatchNorm has them: DistributedDataParallel averages them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from axnet.ops import calls, rows
from axnet.ops.layouts import in_layout_of
from axnet.reference.synchronised import Statistics, all_reduced


class _Blend:
    """Gate and masses by output block o and its anatomies a, b: arrays [N, O, ...] in float64."""

    def __init__(self, gate: Tensor, mass: Tensor, pixels: int, concat: bool) -> None:
        anatomies = gate.shape[1]
        self.concat, self.pixels, self.anatomies = concat, pixels, anatomies
        self.share = 1.0 if concat else 1.0 / anatomies
        self.w = self.by_block(gate.double()) * self.share  # [N, O, B, C]
        self.b = 1 - self.w.sum(2)  # [N, O, C]
        self.m = self.by_block(mass[:, :anatomies, None])  # [N, O, B, 1]
        self.mm = self.pairs(mass[:, anatomies:, None])  # [N, O, B, B, 1]
        self.sum_g = self.b * pixels + (self.w * self.m).sum(2)
        self.sum_gm = self.b[:, :, None] * self.m + self.over_pairs(self.mm)  # [N, O, B, C]

    def by_block(self, t: Tensor) -> Tensor:
        """[N, A, C] to [N, O, B, C]."""
        return t.unsqueeze(2 if self.concat else 1)

    def pairs(self, t: Tensor) -> Tensor:
        """Rows of pairs [N, P, C] to [N, O, B, B, C]."""
        first, second = torch.triu_indices(self.anatomies, self.anatomies, device=t.device)
        row = torch.zeros(self.anatomies, self.anatomies, dtype=torch.int64, device=t.device)
        row[first, second] = row[second, first] = torch.arange(first.shape[0], device=t.device)
        return t[:, row.diagonal()][:, :, None, None] if self.concat else t[:, row].unsqueeze(1)

    def over_pairs(self, t: Tensor) -> Tensor:
        """sum_b w_b t_ab: [N, O, B, B, C] to [N, O, B, C]."""
        return (self.w.unsqueeze(2) * t).sum(3)


def batch_sums(moments: Tensor, gate: Tensor, mass: Tensor, pixels: int, concat: bool) -> tuple[Tensor, Tensor]:
    """sum Y and sum Y^2 of this process's images, float64 [blocks*C] each (docs/method.md, "A3 from moments")."""
    blend, a = _Blend(gate, mass, pixels, concat), gate.shape[1]
    p = rows.pairs(a)
    shift, s1, s2, t, t2, q1, q2 = moments.double().split((1, 1, 1, a, a, p, p), 1)
    b, w = blend.b, blend.w
    wt, wt2 = (w * blend.by_block(t)).sum(2), (w * blend.by_block(t2)).sum(2)
    wwq1, wwq2 = ((w * blend.over_pairs(blend.pairs(q))).sum(2) for q in (q1, q2))
    sum_gg = b * blend.sum_g + (w * blend.sum_gm).sum(2)
    sum_y = shift * blend.sum_g + b * s1 + wt
    sum_yy = shift * shift * sum_gg + 2 * shift * (b * b * s1 + 2 * b * wt + wwq1) + (b * b * s2 + 2 * b * wt2 + wwq2)
    return sum_y.sum(0).flatten(), sum_yy.sum(0).flatten()


class _GateNorm(torch.autograd.Function):
    """gate_norm under the statistics of all processes; its backward corrects what the op takes for given ones."""

    @staticmethod
    def forward(ctx: Any, ops: Any, group: dist.ProcessGroup, count: Tensor, given: dict[str, Any], *_: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            out = calls.gate_norm(ops, **given)
        names = ("x", "mask", "gate", "mass", "weight")
        ctx.save_for_backward(*(given[name] for name in names), out.mean, out.var, out.saved, count)
        ctx.ops, ctx.group, ctx.eps, ctx.concat = ops, group, given["eps"], given["concat"]
        return out.z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, mask, gate, mass, weight, mean, var, saved, count = ctx.saved_tensors
        grad_z = in_layout_of(x, grads[0])
        grad = calls.gate_norm_backward(
            ctx.ops,
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
            batch_statistics=False,
            concat=ctx.concat,
        )
        sums = torch.cat((grad.bias, grad.weight)).double()
        dist.all_reduce(sums, group=ctx.group)
        d_beta, d_gamma = (sums / count.clamp(min=1)).chunk(2)
        r = (var.double() + ctx.eps).rsqrt()
        scale = r if weight is None else r * weight.double()
        k3 = -scale * r * d_gamma
        k2 = -scale * d_beta - k3 * mean.double()
        blocks, channels = grad.coef.shape[1], grad.coef.shape[3]
        k2, k3 = k2.view(blocks, channels), k3.view(blocks, channels)
        coef = grad.coef.clone()
        coef[:, :, 1], coef[:, :, 2] = k2.to(coef.dtype), k3.to(coef.dtype)
        correction = _gate_correction(saved, _Blend(gate, mass, x.shape[2] * x.shape[3], ctx.concat), k2, k3)
        needs = ctx.needs_input_grad[4:]
        return (
            *(None,) * 4,
            (grad.gate + correction).to(gate.dtype),
            grad.weight if needs[1] else None,
            grad.bias if needs[2] else None,
            grad_z,
            coef,
        )


def _gate_correction(saved: Tensor, blend: _Blend, k2: Tensor, k3: Tensor) -> Tensor:
    """What k2 and k3 add to the gate's gradient [N, A, C]."""
    b = blend.w.shape[2]
    shift, s1, t, q0, q, e0, e = saved.double().split((1, 1, b, 1, b, 1, b), 2)
    shift, s1, q0, e0 = (row.squeeze(2) for row in (shift, s1, q0, e0))
    db = shift * (k2 * blend.pixels + k3 * (shift * blend.sum_g + q0)) + k2 * s1 + k3 * e0
    far, k2, k3 = shift.unsqueeze(2), k2.unsqueeze(1), k3.unsqueeze(1)
    dw = far * (k2 * blend.m + k3 * (far * blend.sum_gm + q)) + k2 * t + k3 * e
    return ((dw - db.unsqueeze(2)) * blend.share).flatten(1, 2)


def gate_norm(
    ops: Any,
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    first: calls.Moments,
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    concat: bool,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Statistics]:
    """Z of the gated blend under the statistics of all processes of a group, and these."""
    pixels = x.shape[2] * x.shape[3]
    with torch.no_grad():
        sums = batch_sums(first.moments, gate, first.mass, pixels, concat)
        found = all_reduced(x.shape[0] * pixels, *sums, group)
    given = {
        **{"x": x, "mask": mask, "gate": gate, "moments": first.moments, "mass": first.mass},
        **{"weight": weight, "bias": bias, "eps": eps, "concat": concat, "save": True},
        **{"running_mean": found.mean.to(mask.dtype), "running_var": found.var.to(mask.dtype)},
        **{"link": first.link.detach(), "coef_link": first.coef_link.detach()},
    }
    given = {name: t.detach() if isinstance(t, Tensor) else t for name, t in given.items()}
    differentiable = (gate, weight, bias, first.link, first.coef_link)
    z: Tensor = _GateNorm.apply(ops, group, found.values, given, *differentiable)
    return z, found
