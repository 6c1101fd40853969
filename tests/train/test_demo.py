from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from axnet.models import AnatomyXNet, DenseNetGAP, load_classifier
from axnet.train import DataConfig, DemoConfig, DemoResult, FitConfig, pace, run_demo
from axnet.train import demo as demo_module

pytestmark = pytest.mark.slow


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


SMALL = {"size": 48, "batch_size": 16, "segmenter_images": 12, "segmenter_epochs": 1, "progress": False}


def test_the_number_of_steps_follows_from_the_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "seconds_per_step", lambda runs, data: 4.0)  # a slow machine
    said: list[str] = []
    data = DataConfig(train_images=48, test_images=20, workers=0)
    result = run_demo(DemoConfig(out=str(tmp_path), data=data, minutes=2.0, **SMALL), said.append)
    steps = {run.steps for run in result.fits.values()}
    assert len(steps) == 1
    # 120 s less the segmenter and the images, which are quick, and 20 films to score at 0.019 steps each
    before = result.seconds["segmenter"] + result.seconds["images and masks"]
    assert steps.pop() == pytest.approx((120 - before - 0.019 * 20 * 4) / 4, abs=1)
    assert said[0].startswith("this takes about 2.0 minutes on this machine, with about ")
    assert any(" steps of each network, 4 s for both: about " in line for line in said)
    assert json.loads(result.assessment.metrics.read_text())["run"]["steps"] == next(iter(result.fits.values())).steps


@pytest.mark.parametrize(
    ("data", "words"), [("phantom", "about 60 s is too short here: images"), ("nih", "get what the")]
)
def test_what_the_demo_says_first(data: str, words: str) -> None:
    config = DemoConfig(data=DataConfig(data=data, root="x"), minutes=1.0)
    assert words in demo_module._first_word(config, 1.0)
    longer = demo_module._first_word(replace(config, minutes=60.0), 1.0)
    # 0.05 x 300 x 12 + 0.034 x 4500 + 0.019 x 2000 = 371 steps of both networks for the rest
    assert "with about 3229 steps of each network" in longer or data == "nih"


def test_the_pace_leaves_out_how_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "fit", lambda run, data: SimpleNamespace(seconds=5 + run.lr * run.max_steps))
    runs = [FitConfig(out="a", lr=0.25), FitConfig(out="b", lr=0.5)]
    assert pace.seconds_per_step(runs, pace.made_up(16, 4, ("a",))) == pytest.approx(0.75)


def test_the_pace_of_real_steps(tmp_path: Path) -> None:
    run = FitConfig(out=str(tmp_path / "run"), architecture="densenet-gap", options={"backbone": "tiny"}, batch_size=2)
    assert 0 < pace.seconds_per_step([replace(run, accelerator="cpu")], pace.made_up(32, 4, ("a", "b"))) < 60
    assert not (tmp_path / "run").exists()
