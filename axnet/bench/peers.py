"""The peers' modules op by op, as they are published: what users run today. Written from docs/method.md's formulas."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axnet.nn import AnatomyAwareAttention
from axnet.reference import GateFunction
from axnet.types import MaskedPool


def published_attention(x: Tensor, mask: Tensor, gate: GateFunction, norm: nn.BatchNorm2d) -> Tensor:
    """A3 with one pooling module per descriptor and one masked copy of X per anatomy.

    x: [N, C, H, W]; mask: [N, A, H, W]; gate: descriptors to [N, A, C]. Returns [N, C, H, W].
    """
    average, largest = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
    masked = [mask[:, a : a + 1] * x for a in range(mask.shape[1])]
    pool = MaskedPool(
        average.flatten(1),
        largest.flatten(1),
        torch.stack([F.adaptive_avg_pool2d(m, 1).flatten(1) for m in masked], 1),
        torch.stack([F.adaptive_max_pool2d(m, 1).flatten(1) for m in masked], 1),
    )
    gates = gate(pool)[..., None, None]
    blended = [gates[:, a] * m + (1 - gates[:, a]) * x for a, m in enumerate(masked)]
    out: Tensor = norm(torch.stack(blended).mean(0))
    return out


def published_gate(module: AnatomyAwareAttention, pool: MaskedPool) -> Tensor:
    """The gate's two layers as one 1x1 convolution per descriptor and anatomy. Returns [N, A, C]."""
    gates = []
    for a in range(module.num_anatomies):
        entries = (pool.avg, pool.max, pool.masked_max[:, a], pool.masked_avg[:, a])
        hidden = torch.stack(
            [
                F.leaky_relu(
                    F.conv2d(e[..., None, None], module.hidden_weight[a, j][..., None, None], module.hidden_bias[a, j]),
                    0.2,
                )
                for j, e in enumerate(entries)
            ]
        ).sum(0)
        gates.append(F.conv2d(hidden, module.gate_weight[a][..., None, None], module.gate_bias[a]).sigmoid().flatten(1))
    return torch.stack(gates, 1)


def published_pooling(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """PCAM's pooling: one map after the other, each normalised and multiplied with all of X.

    x: [N, C, H, W]; weight: [K, C]; bias: [K]. Returns pooled [N, K, C] and the maps [N, K, H, W].
    """
    pooled, maps = [], []
    for k in range(weight.shape[0]):
        p = F.conv2d(x, weight[k : k + 1, :, None, None], bias[k : k + 1]).sigmoid()
        share = p / p.sum((2, 3), keepdim=True)
        pooled.append((x * share).sum((2, 3)))
        maps.append(p)
    return torch.stack(pooled, 1), torch.cat(maps, 1)
