"""axnet evaluate: ensembles, test-time augmentation, subgroups, boxes, radiologists' labels, calibration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from command import run

from axnet.data import NIH_FINDINGS, write_nih
from axnet.models import AnatomyXNet, DenseNetGAP, Preprocessing, load_classifier, save_classifier


@pytest.fixture(scope="module")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nih(tmp_path_factory.mktemp("data") / "nih", 60, seed=4, size=48, test_fraction=0.5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    preprocessing = Preprocessing(size=32)
    models = {"a": AnatomyXNet(14, 2, "tiny", reduction=0.25, num_maps="classes"), "b": DenseNetGAP(14, "tiny")}
    for name, model in models.items():
        save_classifier(folder / f"{name}.safetensors", model, preprocessing, NIH_FINDINGS)
    return folder / "a.safetensors", folder / "b.safetensors"


def test_an_ensemble_with_everything(nih: Path, weights: tuple[Path, Path], tmp_path: Path) -> None:
    table = pd.read_csv(nih / "Data_Entry_2017_v2020.csv")
    pd.DataFrame({"image": table["Image Index"], "Cardiomegaly": ["YES", "NO"] * (len(table) // 2)}).to_csv(
        tmp_path / "read.csv", index=False
    )
    out = tmp_path / "out"
    text = run(
        *("evaluate", *weights, "--tta", "--tta-scales", "0.9", "--ensemble", "ranks", "--data", "nih", "--root", nih),
        *("--workers", 0, "--out", out, "--adjudicated", tmp_path / "read.csv", "--segmenter", _segmenter(tmp_path)),
    )
    record = json.loads((out / "metrics.json").read_text())
    assert list(record["models"]) == ["ensemble", "a", "b"]
    assert record["models"]["ensemble"]["classes"][0]["brier"] is None  # ranks are no probabilities
    assert record["models"]["a"]["classes"][0]["brier"] is not None
    assert record["run"]["test-time augmentation"].startswith("6 views")
    assert {part["attribute"] for part in record["subgroups"]} >= {"sex", "view"}
    assert {one["brier"] for part in record["subgroups"] for one in part["classes"]} == {None}
    assert [one["maps"] for one in record["localisation"].values()] == ["probability maps", "Grad-CAM"]
    assert [one["finding"] for one in record["label_quality"]] == ["Cardiomegaly"]
    page = (out / "report.html").read_text()
    for title in ("Precision-recall", "Subgroups", "Label quality", "Localisation", "PriorNet"):
        assert title in page, title
    assert "Reliability" not in page
    assert "fewer than 15 positives" in text
    assert "mean AUC" in text


def test_names_tell_files_apart() -> None:
    from axnet.cli.evaluate import _names
    from axnet.predictor import shipped

    runs = [Path("runs/a/model.safetensors"), Path("runs/b/model.safetensors")]
    assert _names(runs) == ["a", "b"]
    assert _names([Path("weights/a.safetensors"), Path("weights/b.safetensors")]) == ["a", "b"]
    assert _names([shipped(), runs[0]]) == ["frontal", "a"]
    assert _names([Path("ensemble/x.safetensors"), runs[0]]) == ["x", "model"]
    assert len(set(_names([Path("1/a/m.safetensors"), Path("2/a/m.safetensors")]))) == 2


def test_classifiers_of_other_films_are_refused(weights: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_classifier(other, DenseNetGAP(14, "tiny"), Preprocessing(size=48), NIH_FINDINGS)
    with pytest.raises(ValueError, match=r"other.safetensors' takes films of size 48, '.*a.safetensors' of 32"):
        run("evaluate", weights[0], other, "--out", tmp_path)
    save_classifier(other, DenseNetGAP(2, "tiny"), Preprocessing(size=32), NIH_FINDINGS[:2])
    with pytest.raises(ValueError, match=r"other.safetensors' has classes"):
        run("evaluate", weights[0], "--baseline", other, "--out", tmp_path)


def test_calibrate_is_stored_and_used(nih: Path, weights: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ("--data", "nih", "--root", nih, "--split", "all", "--workers", 0, "--out", tmp_path)
    text = run("evaluate", weights[1], *arguments, "--calibrate", "prevalence", "--temperature", "overall")
    calibration = load_classifier(weights[1])[1].calibration
    assert calibration is not None
    assert "60 films of nih-all" in calibration.films
    assert "called of 1,000" in text
    assert "as many films are called positive as are" in text
    (tmp_path / "other").mkdir()
    baseline = shutil.copy(weights[0], tmp_path / "other")
    (tmp_path / "other" / "films.txt").write_text("00000001_000.png\nanother.png\n")  # those of its run
    (tmp_path / "other" / "patients.txt").write_text("nih/00000001\nnih/00000002\nmimic/00000003\n")
    text = run("evaluate", weights[1], *arguments, "--baseline", baseline, "--segmenter", _segmenter(tmp_path))
    assert "test patients are among those that a classifier was trained or chosen on, by their names: nih/0" in text
    assert json.loads((tmp_path / "metrics.json").read_text())["run"]["test patients seen in training"] == 2
    assert "1 of the 60 test films are among those that a classifier was trained or chosen on" in text
    page = (tmp_path / "report.html").read_text()
    assert "Calls at the operating point" in page
    assert "as many films are called positive as are" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "a"), "names '.*a.safetensors' twice"),
        (("a", "b", "--calibrate", "youden"), "--calibrate was given with 2 classifiers"),
        (("--calibrate", "youden"), "classifier that comes with axnet"),
        (("a", "--calibrate", "youden", "--tta"), "--calibrate was given with --tta"),
        (("a", "--calibrate", "youden", "--data", "nih"), "--calibrate needs --split"),
        (("a", "--calibrate", "youden", "--root", "packed"), "--calibrate needs --split"),
        (("a", "--root", "nih-packd"), "root 'nih-packd' is no folder of axnet prepare, and data 'phantom' is drawn"),
        (("a", "--calibrate", "best"), "rule is 'best'"),
        (("a", "--tta-shifts", "x"), "--tta-shifts is 'x'"),
        (("a", "--tta-shifts", "0.03"), "--tta-shifts was given without --tta, expected both"),
        (("a", "--tta-flip"), "--tta-flip was given without --tta"),
        (("a", "--temperature", "overall"), "--temperature was given without --calibrate"),
        (
            ("a", "--adjudicated", "nowhere.csv"),
            "adjudicated 'nowhere.csv' does not exist|adjudicated is 'nowhere.csv'",
        ),
    ],
)
def test_errors_name_the_option(
    weights: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    named = {"a": weights[0], "b": weights[1]}
    with pytest.raises((ValueError, OSError), match=message):
        run("evaluate", *(named.get(one, one) for one in arguments), "--out", tmp_path)


def _segmenter(folder: Path) -> Path:
    from axnet.segment import Segmenter, SegmenterConfig

    torch.manual_seed(0)
    Segmenter(SegmenterConfig(size=32, channels=(4, 8))).save(folder / "segmenter.safetensors")
    return folder / "segmenter.safetensors"
