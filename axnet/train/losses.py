"""Losses for findings that are present independently of each other."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["bce", "focal", "asymmetric", "auc-margin"]
LOSSES: tuple[str, ...] = get_args(LossName)
HARD = ("auc-margin",)
"""Losses that know positives and negatives only, and leave labels between them out."""


def loss_of(name: LossName, logits: Tensor, labels: Tensor, *, pos_weight: Tensor | None = None) -> Tensor:
    """The loss of this name with its own settings, a scalar; pos_weight [K] is for "bce" alone.

    logits, labels: [N,K], labels in [0,1], or NaN for unknown, which is left out.
    """
    if name == "focal":
        return focal_loss(logits, labels)
    if name == "asymmetric":
        return asymmetric_loss(logits, labels)
    if name == "auc-margin":
        return auc_margin_loss(logits, labels)
    return bce_loss(logits, labels, pos_weight=pos_weight)


def bce_loss(logits: Tensor, labels: Tensor, *, pos_weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, the mean over images and findings.

    logits, labels: [N,K], labels in [0,1], or NaN for unknown, which is left out. pos_weight [K]: of the positives.
    """
    known, logits, target = _known(logits, labels)
    return _mean(F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction="none"), known)


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, the mean over images and findings (Lin et al., ICCV 2017; MONAI's FocalLoss).

    logits, labels: [N,K], labels in [0,1], or NaN for unknown, which is left out; alpha weighs positives against
    negatives; gamma fades easy ones out.
    """
    from monai.losses.focal_loss import FocalLoss  # seconds, which prediction need not wait

    known, logits, target = _known(logits, labels)
    # each label on its own: MONAI's labels of one image would otherwise be a channel of a map
    values = FocalLoss(gamma=gamma, alpha=alpha, reduction="none")(logits.reshape(-1, 1), target.reshape(-1, 1))
    return _mean(values.reshape(labels.shape), known)


def asymmetric_loss(
    logits: Tensor, labels: Tensor, *, gamma_positive: float = 0.0, gamma_negative: float = 4.0, shift: float = 0.05
) -> Tensor:
    """Asymmetric loss, the mean over images and findings (Ridnik et al., ICCV 2021, whose settings are the defaults).

    A focal loss that fades out easy negatives more than easy positives, and drops negatives whose probability is below
    shift: L = -y (1-p)^gamma_positive log p - (1-y) q^gamma_negative log(1-q), with q = max(p - shift, 0).
    logits, labels: [N,K], labels y in [0,1], or NaN for unknown, which is left out.
    """
    known, logits, target = _known(logits, labels)
    shifted = (logits.sigmoid() - shift).clamp(min=0)
    log_rest = torch.logaddexp(F.logsigmoid(-logits), logits.new_tensor(shift).log()).clamp(max=0)  # log(1-q)
    positive = -(logits.neg().sigmoid() ** gamma_positive) * F.logsigmoid(logits)
    negative = -(shifted**gamma_negative) * log_rest
    return _mean(target * positive + (1 - target) * negative, known)


def auc_margin_loss(logits: Tensor, labels: Tensor, *, margin: float = 1.0) -> Tensor:
    """AUC-margin loss of the probabilities, the mean over findings (Yuan et al., ICCV 2021; MONAI's AUCMLoss, "v2").

    Its minimum over a, b and maximum over alpha >= 0 are taken exactly for the batch: a and b are the means of
    positives and negatives, alpha = max(0, margin + b - a), so the loss of a finding is the variance of its positives,
    plus that of its negatives, plus alpha^2. logits, labels: [N,K]; labels that are neither 0 nor 1 are left out, and
    so is a finding of which the batch lacks positives or negatives.
    Raises ModuleNotFoundError where MONAI is too old to have it.
    """
    make = auc_margin_class()
    logits = _known(logits, labels)[1]
    losses = []
    for score, label in zip(logits.sigmoid().unbind(1), labels.unbind(1), strict=True):
        known = (label == 0) | (label == 1)
        score, label = score[known], label[known]
        if not 0 < label.sum() < len(label):
            continue
        loss = make(margin=margin, version="v2").to(score.device)
        with torch.no_grad():
            a, b = score[label == 1].mean(), score[label == 0].mean()
            loss.a.copy_(a)
            loss.b.copy_(b)
            loss.alpha.copy_((margin + b - a).clamp(min=0))
        losses.append(loss(score[:, None], label[:, None]))
    return torch.stack(losses).mean() if losses else logits.sum() * 0


def auc_margin_class() -> type[Any]:
    """MONAI's AUCMLoss; ModuleNotFoundError where MONAI is older than it."""
    try:
        from monai.losses.aucm_loss import AUCMLoss
    except ImportError as error:
        raise ModuleNotFoundError(
            "loss 'auc-margin' needs a MONAI that has AUCMLoss, 1.6 or newer: pip install --upgrade monai."
        ) from error
    return AUCMLoss


def positive_weights(labels: Tensor, limit: float = 20.0) -> Tensor:
    """Negatives over positives of each finding [K], at most limit, for the weight of positives in the BCE.

    labels: [N,K]: 0, 1, or NaN for unknown, which counts as neither; without positives, as with one.
    """
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    return (negatives / positives.clamp(min=1)).clamp(max=limit).to(torch.float32)


def _known(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which labels are known, and logits and labels with 0 where they are not.

    Without it a logit that is infinite, as in 16 bits, would reach the others from an unknown label: 0 times infinity.
    """
    known = ~labels.isnan()
    return known, logits.where(known, 0), labels.nan_to_num()


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of the known values; 0, with a gradient of 0, where none is."""
    return values.where(known, 0).sum() / known.sum().clamp(min=1)
