"""A3 in plain PyTorch: masked descriptors, gated blend, batch normalisation (docs/method.md, "A3")."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from axnet.types import Fusion, MaskedPool

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

GateFunction = Callable[[MaskedPool], Tensor]


def masked_pool(x: Tensor, mask: Tensor) -> MaskedPool:
    """Average and maximum of X and of every m_a X over the pixels.

    Args:
        x: features [N, C, H, W], any floating type.
        mask: soft masks [N, A, H, W] in [0, 1], a floating type.

    Returns:
        MaskedPool(avg [N, C], max [N, C], masked_avg [N, A, C], masked_max [N, A, C]) in x's type.
    """
    flat = x.flatten(2)  # [N, C, S]
    weighted = flat.unsqueeze(1) * mask.to(x.dtype).flatten(2).unsqueeze(2)  # [N, A, C, S]
    return MaskedPool(flat.mean(-1), _first_max(flat), weighted.mean(-1), _first_max(weighted))


def _first_max(x: Tensor) -> Tensor:
    # max(dim) sends the gradient to one position, as adaptive max pooling does; amax would spread it over ties.
    return x.max(-1).values


def blend(x: Tensor, mask: Tensor, gate: Tensor, fusion: Fusion = "mean") -> Tensor:
    """Gated blend Y_a = g_a (m_a X) + (1 - g_a) X, averaged or concatenated over the anatomies.

    Args:
        x: features [N, C, H, W].
        mask: soft masks [N, A, H, W] in [0, 1].
        gate: channel gates [N, A, C].
        fusion: "mean" gives [N, C, H, W], "concat" gives [N, A*C, H, W].
    """
    m = mask.to(x.dtype).unsqueeze(2)  # [N, A, 1, H, W]
    g = gate.to(x.dtype)[..., None, None]  # [N, A, C, 1, 1]
    y = g * (m * x.unsqueeze(1)) + (1 - g) * x.unsqueeze(1)  # [N, A, C, H, W]
    # not flatten: of one image and one anatomy it is a view whose strides torch's batch_norm differentiates wrongly
    return y.mean(1) if fusion == "mean" else torch.cat(y.unbind(1), 1)


def anatomy_attention(
    x: Tensor,
    mask: Tensor,
    gate: GateFunction,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    fusion: Fusion = "mean",
    group: ProcessGroup | None = None,
) -> Tensor:
    """Z = BN(blend(X, m, gate(descriptors))), op by op; updates the running statistics in place when training.

    group: processes whose batches the statistics are those of, together.
    """
    y = blend(x, mask, gate(masked_pool(x, mask)), fusion)
    if training and group is not None:
        from axnet.reference.synchronised import synchronised_norm

        return synchronised_norm(y, weight, bias, running_mean, running_var, momentum, eps, group)
    return F.batch_norm(y, running_mean, running_var, weight, bias, training, momentum, eps)
