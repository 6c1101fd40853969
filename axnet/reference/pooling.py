"""PWAP and PCAM pooling in plain PyTorch (docs/method.md, "PWAP")."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pwap(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probability-weighted average of the features over the pixels, normalised in the log domain.

    Args:
        x: features [N, C, H, W], any floating type.
        weight: one 1x1 convolution row per probability map [K, C].
        bias: [K] or None.

    Returns:
        pooled [N, K, C] and the probability maps [N, K, H, W], in x's type.
    """
    logits = F.conv2d(x, weight.to(x.dtype)[..., None, None], None if bias is None else bias.to(x.dtype))
    share = F.logsigmoid(logits).flatten(2).softmax(-1)  # [N, K, S]
    return share @ x.flatten(2).transpose(1, 2), logits.sigmoid()


def pcam(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """PCAM (arXiv 2005.14480): the same 1x1 convolution makes the maps and classifies the pooled vectors.

    Args:
        x: features [N, C, H, W].
        weight: [K, C].
        bias: [K] or None.

    Returns:
        logits [N, K] and the probability maps [N, K, H, W].
    """
    pooled, prob = pwap(x, weight, bias)
    return classify_pooled(pooled, weight, bias), prob


def classify_pooled(pooled: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """logit_k = <W_k, pooled_k> + b_k for pooled [N, K, C]; returns [N, K]."""
    logits = (pooled * weight.to(pooled.dtype)).sum(-1)
    return logits if bias is None else logits + bias.to(pooled.dtype)
