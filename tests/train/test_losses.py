from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from axnet.train import MeanAUROC, focal_loss, positive_weights


def test_focal_loss_by_hand() -> None:
    logit = math.log(0.8 / 0.2)
    positive = focal_loss(torch.tensor([[logit]]), torch.tensor([[1.0]]))
    negative = focal_loss(torch.tensor([[logit]]), torch.tensor([[0.0]]))
    assert float(positive) == pytest.approx(0.25 * 0.2**2 * -math.log(0.8), rel=1e-5)
    assert float(negative) == pytest.approx(0.75 * 0.8**2 * -math.log(0.2), rel=1e-5)


def test_focal_loss_without_focus_is_half_the_bce() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    bce = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(focal_loss(logits, labels, alpha=0.5, gamma=0.0), bce / 2)


def test_focal_loss_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([[0.0, 1.0]])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_positive_weights() -> None:
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    assert positive_weights(labels).tolist() == pytest.approx([3, 4, 1 / 3])
    assert positive_weights(labels, limit=2.0).tolist() == pytest.approx([2, 2, 1 / 3])


def test_mean_auroc_leaves_out_findings_of_one_kind() -> None:
    metric = MeanAUROC()
    metric.update(torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.6]]), torch.tensor([[1, 0, 0], [0, 0, 1]]))
    metric.update(torch.tensor([[0.4, 0.3, 0.7]]), torch.tensor([[1, 0, 0]]))
    assert float(metric.compute()) == pytest.approx((1.0 + 0.5) / 2)
    metric.reset()
    metric.update(torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([[1, 0, 0]]))
    assert math.isnan(float(metric.compute()))


def test_mean_auroc_counts_an_image_once() -> None:
    scores, labels = torch.rand(7, 2), torch.tensor([[0.0, 1], [1, 0], [0, 0], [1, 1], [0, 1], [1, 0], [0, 0]])
    metric, whole = MeanAUROC(), MeanAUROC()
    whole.update(scores, labels)
    for rows in ([4, 5], [0, 2, 3], [1, 6, 4, 0]):  # 4 and 0 twice
        metric.update(scores[rows], labels[rows], torch.tensor(rows))
    assert metric.compute() == pytest.approx(float(whole.compute()))
    metric.reset()
    metric.update(scores, labels, torch.arange(7))
    assert metric.compute() == pytest.approx(float(whole.compute()))
