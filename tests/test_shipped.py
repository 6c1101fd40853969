"""The classifier that comes with axnet: it loads, and says of three drawn films what it said when it was made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from axnet.cli import app
from axnet.data import NIH_FINDINGS, PhantomXray
from axnet.models import Prediction, Predictor, load_pretrained
from axnet.models.storage import SHIPPED

STORED = json.loads((Path(__file__).parent / "golden" / "frontal.json").read_text())
LARGEST = 12_000_000
DATA = Path(os.environ.get("AXNET_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
REAL = [DATA / name / "images" for name in ("nih_128", "nih_subset")]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    found = load_pretrained()
    assert isinstance(found, Predictor)
    return found


def film(seed: int) -> np.ndarray:
    """A phantom as a film is stored: uint8 [256, 256]."""
    return np.rint(PhantomXray(1, seed=seed, size=256)[0]["image"][0].numpy() * 255).astype(np.uint8)


def test_what_comes_with_it(predictor: Predictor) -> None:
    assert predictor.findings == NIH_FINDINGS
    calibration = predictor.info.calibration
    assert calibration is not None
    assert calibration.temperature > 0
    called = [finding for finding, limit in zip(predictor.findings, calibration.thresholds, strict=True) if limit]
    assert "Effusion" in called
    assert (SHIPPED / "frontal.safetensors").stat().st_size < LARGEST
    card = (SHIPPED / "frontal.md").read_text()
    assert "not a medical device" in card
    with pytest.raises(ValueError, match=r"name is 'lateral', expected one of \['frontal'\]"):
        load_pretrained("lateral")


def test_stored_predictions(predictor: Predictor) -> None:
    found = predictor.predict([film(case["seed"]) for case in STORED])
    assert len(found) == 3
    for case, prediction in zip(STORED, found, strict=True):
        assert isinstance(prediction, Prediction)
        assert prediction.probabilities == pytest.approx(case["probabilities"], abs=2e-3)
        assert prediction.anatomy.ctr == pytest.approx(case["ctr"], abs=2e-3)
        assert list(prediction.flags) == case["flags"]
        limits = dict(zip(predictor.findings, predictor.info.calibration.thresholds, strict=True))
        for finding, call in prediction.positive.items():
            if abs(prediction.probabilities[finding] - limits[finding]) > 2e-3:
                assert call == case["positive"][finding]


def logits(predictor: Predictor, films: list[Any]) -> np.ndarray:
    found = [list(one.probabilities.values()) for one in predictor.predict(films)]
    return np.log(np.array(found) / (1 - np.array(found)))


def test_a_film_says_the_same_in_a_larger_file(predictor: Predictor) -> None:
    large = [np.rint(PhantomXray(1, seed=seed, size=512)[0]["image"][0].numpy() * 255) for seed in range(40, 46)]
    small = [
        np.asarray(Image.fromarray(film.astype(np.uint8)).resize((128, 128), Image.Resampling.BOX)) for film in large
    ]
    assert np.abs(logits(predictor, large) - logits(predictor, small)).mean() < 0.2


@pytest.mark.skipif(not all(map(Path.is_dir, REAL)), reason="nih_128 and nih_subset are not here (set AXNET_DATA)")
def test_a_real_film_says_the_same_in_a_larger_file(predictor: Predictor) -> None:
    names = sorted(set.intersection(*({file.name for file in folder.iterdir()} for folder in REAL)))[:64]
    small, large = (logits(predictor, [folder / name for name in names]) for folder in REAL)
    for k, finding in enumerate(predictor.findings):
        assert np.corrcoef(small[:, k], large[:, k])[0, 1] > 0.9, finding
        assert abs((large - small)[:, k].mean()) < 0.5, finding


def test_the_command_uses_it(predictor: Predictor, tmp_path: Path) -> None:
    stored = STORED[0]
    Image.fromarray(film(stored["seed"])).save(tmp_path / "film.png")
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "film.png")])
    assert result.exit_code == 0, result.output
    assert f"film.png  CTR {stored['ctr']:.2f}"[:-1] in result.output
    assert all(finding in result.output for finding in NIH_FINDINGS)


def test_an_upside_down_negative_gets_no_call(predictor: Predictor) -> None:
    turned = 255 - film(STORED[0]["seed"])[::-1]
    found = predictor.predict([np.ascontiguousarray(turned)])[0]
    assert found.flags
    assert found.positive == {}
    assert set(found.probabilities) == set(NIH_FINDINGS)
