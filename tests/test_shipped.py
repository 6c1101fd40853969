"""The classifier that comes with axnet: it loads, and says of three drawn films what it said when it was made."""

from __future__ import annotations

import json
from pathlib import Path

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
