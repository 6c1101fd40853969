"""Losses for findings that are present independently of each other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["bce", "focal"]


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, the mean over images and findings (Lin et al., ICCV 2017).

    logits, labels: [N,K], labels in [0,1]; alpha weighs positives against negatives; gamma fades easy ones out.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    prob = logits.sigmoid()
    missed = prob * (1 - labels) + (1 - prob) * labels
    weight = alpha * labels + (1 - alpha) * (1 - labels)
    return (weight * missed**gamma * cross_entropy).mean()


def positive_weights(labels: Tensor, limit: float = 20.0) -> Tensor:
    """Negatives over positives of each finding [K], at most limit, for the weight of positives in the BCE.

    labels: [N,K]; a finding without positives gets limit.
    """
    positives = labels.sum(0)
    return ((len(labels) - positives) / positives.clamp(min=1)).clamp(max=limit).to(torch.float32)
