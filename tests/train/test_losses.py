from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from axnet.train import MeanAUROC, asymmetric_loss, auc_margin_loss, focal_loss, positive_weights
from axnet.train.losses import LOSSES, loss_of
from axnet.train.mixing import smoothed

HAS_AUCM = bool(find_spec("monai.losses.aucm_loss"))
needs_aucm = pytest.mark.skipif(not HAS_AUCM, reason="MONAI is older than its AUCMLoss")


def bce(x: Tensor, y: Tensor) -> Tensor:
    p = x.sigmoid()
    return -(y * p.log() + (1 - y) * (1 - p).log())


def focal(x: Tensor, y: Tensor) -> Tensor:
    p = x.sigmoid()
    return -(0.25 * y * (1 - p) ** 2 * p.log() + 0.75 * (1 - y) * p**2 * (1 - p).log())


def asymmetric(x: Tensor, y: Tensor) -> Tensor:
    p = x.sigmoid()
    q = (p - 0.05).clamp(min=0)
    return -(y * p.log() + (1 - y) * q**4 * (1 - q).log())


def auc_margin(x: Tensor, y: Tensor) -> Tensor:
    """Of one finding, as the mean over pairs of a positive and a negative would bound it."""
    p = x.sigmoid()
    positive, negative = p[y == 1], p[y == 0]
    gap = (1 + negative.mean() - positive.mean()).clamp(min=0)
    return positive.var(unbiased=False) + negative.var(unbiased=False) + gap**2


PLAIN = {"bce": bce, "focal": focal, "asymmetric": asymmetric}


def drawn() -> tuple[Tensor, Tensor]:
    """Logits and labels of 0, 1 and NaN, in float64."""
    draw = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(40, 5, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 2, (40, 5), generator=draw).double()
    labels[torch.rand(40, 5, generator=draw) < 0.3] = float("nan")
    return logits, labels


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.clone().requires_grad_()
    value = loss(x)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_loss_is_its_formula_over_the_known_labels(name: str) -> None:
    logits, labels = drawn()
    known = ~labels.isnan()
    plain = value_and_gradient(lambda x: PLAIN[name](x[known], labels[known]).mean(), logits)
    assert (plain[1][known] != 0).double().mean() > 0.8
    same(value_and_gradient(lambda x: loss_of(name, x, labels), logits), plain)


@needs_aucm
def test_auc_margin_is_its_formula_over_the_known_labels() -> None:
    logits, labels = drawn()
    known = ~labels.isnan()
    findings = [(known[:, k], labels[:, k]) for k in range(5)]
    plain = value_and_gradient(
        lambda x: torch.stack([auc_margin(x[:, k][one], y[one]) for k, (one, y) in enumerate(findings)]).mean(), logits
    )
    same(value_and_gradient(lambda x: auc_margin_loss(x, labels), logits), plain)


@needs_aucm
def test_auc_margin_leaves_out_what_a_batch_cannot_rank() -> None:
    logits = torch.randn(4, 3)
    labels = torch.tensor([[1.0, 1, 0.7], [0, 1, 0], [1, 1, 1], [0, 1, torch.nan]])
    gradient = value_and_gradient(lambda x: auc_margin_loss(x, labels), logits)[1]
    assert (gradient[:, 0] != 0).all()
    assert (gradient[:, 1] == 0).all()  # no negative
    assert gradient[:, 2].ne(0).tolist() == [False, True, True, False]  # what is neither 0 nor 1 is left out
    value, gradient = value_and_gradient(lambda x: auc_margin_loss(x, torch.ones(4, 3)), logits)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "auc-margin" or HAS_AUCM])
@pytest.mark.parametrize("size", [200.0, 20.0])
def test_losses_of_extreme_logits_are_finite_and_teach(name: str, size: float) -> None:
    labels = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    value, gradient = value_and_gradient(lambda x: loss_of(name, x, labels), size * (1 - 2 * labels))
    assert value.isfinite()
    assert gradient.isfinite().all()
    if name == "auc-margin":
        return  # whose sigmoid is flat there
    taught = gradient * (1 - 2 * labels) > 0
    # a negative that is surely positive is taken for a wrong label by the asymmetric loss
    assert taught[labels == 1].all() if name == "asymmetric" else taught.all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "auc-margin" or HAS_AUCM])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_known_reaches_nothing(name: str, value: float) -> None:
    """Not even where its logit has run over, as in 16 bits."""
    labels = torch.tensor([[0.0, 1.0, torch.nan], [1.0, 0.0, 1.0], [1.0, torch.nan, 0.0]])
    logits = torch.randn(3, 3)
    expected, taught = value_and_gradient(lambda x: loss_of(name, x, labels), logits)
    found, gradient = value_and_gradient(lambda x: loss_of(name, x, labels), logits.masked_fill(labels.isnan(), value))
    assert found == expected
    assert (gradient[labels.isnan()] == 0).all()
    assert torch.equal(gradient, taught)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "auc-margin" or HAS_AUCM])
def test_a_batch_without_a_known_label_teaches_nothing(name: str) -> None:
    value, gradient = value_and_gradient(lambda x: loss_of(name, x, torch.full((3, 2), torch.nan)), torch.randn(3, 2))
    assert value == 0
    assert (gradient == 0).all()


def test_asymmetric_loss_without_asymmetry_is_the_bce() -> None:
    logits, labels = drawn()
    same(
        value_and_gradient(lambda x: asymmetric_loss(x, labels, gamma_positive=0, gamma_negative=0, shift=0), logits),
        value_and_gradient(lambda x: loss_of("bce", x, labels), logits),
    )


def test_smoothed_labels_are_a_mean_of_losses() -> None:
    logits, labels = drawn()
    soft = smoothed(labels, 0.2)
    assert torch.equal(soft.isnan(), labels.isnan())
    assert sorted(set(soft[~soft.isnan()].tolist())) == pytest.approx([0.1, 0.9])
    assert smoothed(labels, 0) is labels
    apart = [loss_of("bce", logits, target) for target in (labels, 1 - labels)]
    torch.testing.assert_close(loss_of("bce", logits, soft), 0.9 * apart[0] + 0.1 * apart[1])


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
