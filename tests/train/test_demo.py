from __future__ import annotations

import json

import pytest

from axnet.models import AnatomyXNet, DenseNetGAP, load_classifier
from axnet.train import DataConfig, DemoConfig, DemoResult, run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    out = tmp_path_factory.mktemp("demo")
    data = DataConfig(train_images=64, test_images=60, workers=0)
    small = {"size": 48, "steps": 4, "batch_size": 16, "segmenter_images": 24, "segmenter_epochs": 1}
    return run_demo(DemoConfig(out=str(out), data=data, progress=False, **small), lambda _: None)


def test_both_had_the_same_budget(demo: DemoResult) -> None:
    assert [result.steps for result in demo.fits.values()] == [4, 4]
    kinds = [type(result.model) for result in demo.fits.values()]
    assert kinds == [AnatomyXNet, DenseNetGAP]
    first, second = demo.fits.values()
    assert first.preprocessing == second.preprocessing
    one, other = (json.loads((result.weights.parent / "config.json").read_text()) for result in demo.fits.values())
    differing = {key for key in one if one[key] != other[key]}
    assert differing == {"out", "architecture", "options"}
    assert {key: one["options"][key] for key in other["options"]} == other["options"]


def test_what_it_leaves(demo: DemoResult) -> None:
    out = demo.assessment.report.parent
    record = json.loads((out / "metrics.json").read_text())
    assert set(record["models"]) == {"AnatomyXNet", "DenseNet + GAP"}
    assert set(record["segmentation"]) == {"left_lung", "right_lung", "heart"}
    assert record["difference"]["low"] <= record["difference"]["high"]
    assert (out / "segmenter.safetensors").is_file()
    model, info = load_classifier(out / "anatomy-xnet" / "model.safetensors")
    assert isinstance(model, AnatomyXNet)
    assert info.training["max_steps"] == 4
    page = (out / "report.html").read_text()
    assert "DenseNet + GAP" in page
    assert page.count("<img") + page.count("<svg") > 4
    assert set(demo.seconds) == {"segmenter", "images and masks", "AnatomyXNet", "DenseNet + GAP", "evaluation"}
