from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from axnet.models import AnatomyXNet, Preprocessing
from axnet.train import FitConfig, MeanAUROC, XraySet, assess, collect, fit, focal_loss, positive_weights, predict
from axnet.train.labels import checked_labels, hard
from axnet.train.losses import bce_loss

NAN = math.nan
FINDINGS = ("a", "b")
OPTIONS = {"backbone": "tiny", "reduction": 0.25}


def radiographs(labels: Any, count: int = 8, prefix: str = "film") -> XraySet:
    draw = torch.Generator().manual_seed(0)
    return XraySet(
        images=torch.randint(0, 256, (count, 1, 48, 48), dtype=torch.uint8, generator=draw),
        masks=torch.randint(0, 256, (count, 2, 48, 48), dtype=torch.uint8, generator=draw),
        labels=labels,
        findings=FINDINGS,
        ids=tuple(f"{prefix}{number}.png" for number in range(count)),
        patients=tuple(f"{prefix}{number}" for number in range(count)),
        split_hash="x",
        preprocessing=Preprocessing(size=48),
    )


def labels(value: float = 1.0, count: int = 8) -> Tensor:
    drawn = (torch.arange(2 * count).reshape(count, 2) % 3 == 0).float()
    drawn[2, 1] = value
    return drawn


def config(out: Path, **changes: Any) -> FitConfig:
    settings = {"options": OPTIONS, "max_steps": 2, "batch_size": 8, "progress": False, "logs": False}
    return FitConfig(out=str(out), **{**settings, "accelerator": "cpu", "select": "last", **changes})


@pytest.mark.parametrize("value", [-1.0, 2.0, 0.5, math.inf])
def test_another_label_is_named_before_training(tmp_path: Path, value: float) -> None:
    words = rf"the label {value:g} of finding 'b' on film 'film2.png', expected 0, 1, or NaN for unknown"
    good = radiographs(labels())
    if value != 0.5:  # which may train, as uncertain labels are smoothed, and is left out of the validation AUC
        with pytest.raises(ValueError, match=f"train has {words}"):
            fit(config(tmp_path / "run"), radiographs(labels(value)))
        with pytest.raises(ValueError, match=f"validation has {words}"):
            fit(config(tmp_path / "run"), replace(good, patients=tuple("abcdefgh")), radiographs(labels(value)))
    assert not (tmp_path / "run").exists()
    model = AnatomyXNet(2, backbone="tiny", reduction=0.25)
    with pytest.raises(ValueError, match=f"test has {words}"):
        assess(
            {"m": (model, good.preprocessing)}, radiographs(labels(value)), tmp_path, title="", description="", run={}
        )


def test_all_strange_labels_are_counted() -> None:
    with pytest.raises(ValueError, match="film 'x' and 2 labels more like it, expected"):
        checked_labels([[-1, 0], [2, 0.5]], FINDINGS, ("x", "y"))


@pytest.mark.parametrize("kind", ["text", "object", "short", "flat"])
def test_labels_that_are_no_table_of_numbers(kind: str) -> None:
    table: Any = labels().numpy().astype(object)
    if kind == "text":
        table = table.astype(int).astype(str)
        table[2, 1] = "uncertain"
        words = "the label 'uncertain' of finding 'b' on film 'film2.png'"
    elif kind == "object":
        table[2, 1] = [0]
        words = r"the label \[0\] of finding 'b' on film 'film2.png'"
    else:
        table = table[:, :1] if kind == "short" else table[:, 0]
        words = rf"labels of shape {r'.8, 1.' if kind == 'short' else '.8.'}, expected \[8, 2\]"
    with pytest.raises(ValueError, match=words):
        checked_labels(table, FINDINGS, radiographs(None).ids)


@pytest.mark.parametrize("form", ["float64", "int64", "bool", "numpy", "list", "text", "pandas", "nullable"])
def test_labels_of_any_form(form: str) -> None:
    right = labels()
    form_of: dict[str, Any] = {
        "float64": right.double(),
        "int64": right.long(),
        "bool": right.bool(),
        "numpy": right.numpy().astype(np.int8),
        "list": right.tolist(),
        "text": right.int().numpy().astype(str),
        "pandas": pd.DataFrame(right.numpy()),
        "nullable": pd.DataFrame(right.numpy()).convert_dtypes(),
    }
    found = checked_labels(form_of[form], FINDINGS, radiographs(None).ids)
    assert found.dtype is torch.float32
    assert torch.equal(found, right)


class Source:
    findings = FINDINGS
    split_hash = "x"

    def __init__(self, table: Any) -> None:
        self.labels = table
        self.ids = [f"film{number}.png" for number in range(len(table))]
        self.patients = self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.rand(1, 8, 8)}


def test_a_set_is_read_with_checked_labels() -> None:
    found = collect(Source(np.array([["1", None], [0, NAN], [1, 1]], dtype=object)), Preprocessing(size=8))
    assert found.labels.isnan().tolist() == [[False, True], [False, True], [False, False]]
    with pytest.raises(ValueError, match=r"the label 'u' of finding 'b' on film 'film0.png'"):
        collect(Source(np.array([[1, "u"]], dtype=object)), Preprocessing(size=8))


@pytest.mark.parametrize("loss", [bce_loss, focal_loss])
def test_unknown_labels_have_no_part_in_the_loss(loss: Any) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 3, requires_grad=True)
    truth = torch.randint(0, 2, (6, 3)).float()
    truth[1:3, 1] = NAN
    truth[5] = NAN
    known = ~truth.isnan()
    value = loss(logits, truth)
    (gradient,) = torch.autograd.grad(value, logits)
    expected = loss(logits[known], truth[known])
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert (gradient[~known] == 0).all()
    nothing = loss(logits, torch.full_like(truth, NAN))
    nothing.backward()
    assert nothing.item() == 0
    assert (logits.grad == 0).all()


def test_weighted_loss_is_torchs_where_all_is_known() -> None:
    torch.manual_seed(0)
    logits, truth, weight = torch.randn(6, 3), torch.randint(0, 2, (6, 3)).float(), torch.tensor([0.5, 1.0, 3.0])
    expected = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=weight)
    torch.testing.assert_close(bce_loss(logits, truth, pos_weight=weight), expected, rtol=0, atol=0)


def test_unknown_labels_have_no_part_in_class_weights_and_auc() -> None:
    truth = torch.tensor([[1.0, NAN], [0, 1], [NAN, NAN], [NAN, NAN], [0, 0]])
    assert positive_weights(truth).tolist() == [2.0, 1.0]
    metric = MeanAUROC()
    scores = torch.tensor([[0.7, 0.9], [0.1, 0.8], [0.99, 0.1], [0.0, 0.2], [0.8, 0.3]])
    metric.update(scores[:2], truth[:2])
    metric.update(scores[2:], truth[2:])
    assert metric.compute().item() == pytest.approx((0.5 + 1.0) / 2)


@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_training_and_assessment_with_unknown_labels(tmp_path: Path, loss: str) -> None:
    table = labels(NAN)
    table[5] = NAN
    train, test = radiographs(table), radiographs(table, prefix="other")
    result = fit(config(tmp_path, loss=loss, pos_weight=loss == "bce"), train, test)
    assert result.steps == 2
    assert all(value.isfinite().all() for value in result.model.state_dict().values())
    assert 0 <= result.val_auc <= 1
    found = assess({"m": (result.model, result.preprocessing)}, test, tmp_path, title="t", description="d", run={})
    assert found.evaluations["m"].classes[1].positives == int((table[:, 1] == 1).sum())
    assert json.loads(found.metrics.read_text())["models"]["m"]["samples"] == 8
    with pytest.raises(ValueError, match="train has no known label of finding 'b', expected some 0 or 1"):
        fit(config(tmp_path), radiographs(torch.stack((table[:, 0], torch.full((8,), NAN)), 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32])
def test_prediction_in_the_models_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, data = AnatomyXNet(2, backbone="tiny", reduction=0.25), radiographs(labels())
    expected = predict(model, data, data.preprocessing)
    found = predict(model.to(dtype), data, data.preprocessing)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=0.02 if dtype is torch.bfloat16 else 1e-5)


def test_training_and_prediction_under_another_default_type_and_autocast(tmp_path: Path) -> None:
    data = radiographs(labels())
    expected = fit(config(tmp_path / "a"), data)
    try:
        torch.set_default_dtype(torch.float64)
        found = fit(config(tmp_path / "b"), data)
        assert torch.get_default_dtype() is torch.float64
        scores = predict(found.model, data, data.preprocessing)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found.model.state_dict().values(), expected.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert np.array_equal(scores, predict(expected.model, data, data.preprocessing))
    with torch.autocast("cpu", torch.bfloat16):
        assert predict(found.model, data, data.preprocessing) == pytest.approx(scores, abs=0.05)
        fit(config(tmp_path / "c"), data)


def test_smoothed_labels_are_no_truth() -> None:
    labels = torch.tensor([[0.0, 0.6, 1.0, float("nan")]])
    assert torch.equal(hard(labels).nan_to_num(-1), torch.tensor([[0.0, -1.0, 1.0, -1.0]]))
