from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from axnet.metrics import mean_auc
from axnet.models import AnatomyXNet, DenseNetGAP, Output, Preprocessing
from axnet.train import DataConfig, Facts, XraySet, assess, open_part, predict, table
from axnet.train.facts import FilmBox


@pytest.fixture(scope="module")
def test_set() -> XraySet:
    return open_part(DataConfig(test_images=60, workers=0), "test", Preprocessing(size=32))


def models(num_maps: int | str = "classes") -> dict[str, tuple[torch.nn.Module, Preprocessing]]:
    torch.manual_seed(0)
    guided = AnatomyXNet(14, 2, "tiny", num_maps=num_maps, reduction=0.25)
    other = Preprocessing(size=32, mean=0.4)
    return {"guided": (guided, Preprocessing(size=32)), "plain": (DenseNetGAP(14, "tiny"), other)}


@pytest.mark.parametrize("num_maps", [1, "classes"])
def test_files_and_numbers(tmp_path: Path, test_set: XraySet, num_maps: int | str) -> None:
    pair = models(num_maps)
    result = assess(
        pair,
        test_set,
        tmp_path / "new",
        title="A <title>",
        description="d",
        run={"epochs": 3},
        segmentation={"heart": 0.9},
    )
    record = json.loads(result.metrics.read_text())
    truth = test_set.labels.numpy()
    for name, (model, preprocessing) in pair.items():
        scores = predict(model, test_set, preprocessing)
        assert np.array_equal(scores, result.scores[name])
        assert record["models"][name]["mean_auc"]["value"] == pytest.approx(mean_auc(truth, scores))
        assert record["models"][name]["groups"] == len(set(test_set.patients))
    assert result.difference is not None
    aucs = [evaluation.mean_auc.value for evaluation in result.evaluations.values()]
    assert result.difference.value == pytest.approx(aucs[0] - aucs[1])
    assert record["split_hash"] == test_set.split_hash
    assert record["run"] == {"epochs": 3}
    assert record["segmentation"] == {"heart": 0.9}
    page = result.report.read_text()
    assert "A &lt;title&gt;" in page
    assert test_set.split_hash in page
    lines = table(result).splitlines()
    assert len(lines) == 1 + 14 + 2
    assert f"{aucs[0]:.3f}" in lines[-2]
    assert f"{aucs[1]:.3f}" in lines[-2]


def test_one_model_has_no_difference(tmp_path: Path, test_set: XraySet) -> None:
    name, pair = next(iter(models().items()))
    result = assess({name: pair}, test_set, tmp_path, title="t", description="d", run={})
    assert result.difference is None
    assert "difference" not in table(result)


def test_what_is_undefined_is_null_in_the_numbers(tmp_path: Path, test_set: XraySet) -> None:
    one_patient = replace(test_set, patients=("one",) * len(test_set))  # who gives no interval
    result = assess(models(), one_patient, tmp_path, title="t", description="d", run={}, examples=0)
    text = result.metrics.read_text()
    assert "NaN" not in text  # which is not JSON
    difference = json.loads(text)["difference"]
    assert difference["low"] is None
    assert difference["value"] == pytest.approx(result.difference.value if result.difference else math.nan)


class WithoutMaps(torch.nn.Module):
    """A classifier of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = torch.nn.Linear(32 * 32, 14)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> Output:
        return Output(self.classifier(image.flatten(1)), (), image.flatten(2))


def test_a_classifier_without_maps(tmp_path: Path, test_set: XraySet) -> None:
    boxes = Facts(boxes=(FilmBox(0, test_set.findings[0], 0.1, 0.1, 0.2, 0.2),))
    own = {"own": (WithoutMaps(), Preprocessing(size=32))}
    frequent = torch.arange(60)[:, None] % 2 == torch.arange(14) % 2  # so that there are hardest errors to show
    some = replace(test_set, labels=frequent.float())
    result = assess(own, some, tmp_path, title="t", description="d", run={}, facts=boxes)
    assert not result.localised
    assert "false alarm" in result.report.read_text()


def test_a_finding_that_never_occurs(tmp_path: Path, test_set: XraySet) -> None:
    labels = test_set.labels.clone()
    labels[:, 3] = 0
    result = assess(models(), replace(test_set, labels=labels), tmp_path, title="t", description="d", run={})
    assert math.isnan(result.evaluations["guided"].classes[3].auc.value)
    assert json.loads(result.metrics.read_text())["models"]["guided"]["undefined"] == ["Infiltration"]
    assert table(result).splitlines()[4].split() == ["Infiltration", "-", "-"]


def test_another_preprocessing_is_refused(tmp_path: Path, test_set: XraySet) -> None:
    model = models()["plain"][0]
    for wrong, message in (
        (Preprocessing(size=48), "data has images of 32 pixels, the model expects 48"),
        (Preprocessing(size=32, percentiles=None), "the model expects None"),
    ):
        with pytest.raises(ValueError, match=message):
            assess({"plain": (model, wrong)}, test_set, tmp_path, title="t", description="d", run={})
