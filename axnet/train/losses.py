"""Losses for findings that are present independently of each other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["bce", "focal"]


def bce_loss(logits: Tensor, labels: Tensor, *, pos_weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, the mean over images and findings.

    logits, labels: [N,K], labels in [0,1], or NaN for unknown, which is left out. pos_weight [K]: of the positives.
    """
    known = ~labels.isnan()
    target = labels.nan_to_num()
    return _mean(F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction="none"), known)


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, the mean over images and findings (Lin et al., ICCV 2017).

    logits, labels: [N,K], labels in [0,1], or NaN for unknown, which is left out; alpha weighs positives against
    negatives; gamma fades easy ones out.
    """
    known = ~labels.isnan()
    target = labels.nan_to_num()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    prob = logits.sigmoid()
    missed = prob * (1 - target) + (1 - prob) * target
    weight = alpha * target + (1 - alpha) * (1 - target)
    return _mean(weight * missed**gamma * cross_entropy, known)


def positive_weights(labels: Tensor, limit: float = 20.0) -> Tensor:
    """Negatives over positives of each finding [K], at most limit, for the weight of positives in the BCE.

    labels: [N,K]: 0, 1, or NaN for unknown, which counts as neither; without positives, as with one.
    """
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    return (negatives / positives.clamp(min=1)).clamp(max=limit).to(torch.float32)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of the known values; 0, with a gradient of 0, where none is."""
    return values.where(known, 0).sum() / known.sum().clamp(min=1)
