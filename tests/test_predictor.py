"""Predictor: masks, calibrated probabilities, calls, and films on which none is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from axnet.data import PhantomXray
from axnet.models import AnatomyXNet, Calibration, ClassifierInfo, DenseNetGAP, Prediction, Predictor, Preprocessing
from axnet.models.classifier import Output
from axnet.segment import Anatomy
from axnet.segment.view import LATERAL

FINDINGS = ("Effusion", "Mass")
CALIBRATION = Calibration(2.0, (0.5, None), (0.5, None), (0.5, None), (500.0, None), "by hand", "none")
INFO = ClassifierInfo("anatomy-xnet", {}, FINDINGS, Preprocessing(size=32, mean=0.5, std=0.5), {}, CALIBRATION)


class Drawer:
    """A segmenter that finds no chest on 8-bit films that are dark."""

    atlas = torch.full((3, 8, 8), 0.25)

    def predict(self, images: list[Any], batch_size: int, *, keep_probabilities: bool) -> list[Anatomy]:
        assert keep_probabilities
        found = []
        for image in images:
            inside = np.ones((3, 8, 8), np.float32)
            masks = np.ones((3, *image.shape), bool)
            flags = ("the lungs are on the wrong sides",) if image.dtype == np.uint8 and image.max() < 80 else ()
            found.append(Anatomy(masks, 0.5, 1.0, flags, inside))
        return found


class Reader(nn.Module):
    """Logits: mean of the normalised image, and of the masks."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> Output:
        logits = torch.stack((image.mean((1, 2, 3)), mask.mean((1, 2, 3))), 1) * self.one
        return Output(logits, (mask,), logits[:, None])


def test_what_a_film_gets() -> None:
    predictor = Predictor(
        Reader(), replace(INFO, preprocessing=replace(INFO.preprocessing, percentiles=None)), Drawer()
    )
    assert predictor.findings == FINDINGS
    bright, middle, dark = (np.full((40, 30), value, np.uint8) for value in (255, 102, 25))
    found = predictor.predict([bright, middle, dark], batch_size=2)
    sigmoid = [float(torch.sigmoid(torch.tensor(v))) for v in (0.5, -0.1, -0.4)]  # of (grey - mean) / std / temperature
    assert [one.probabilities["Effusion"] for one in found] == pytest.approx(sigmoid, abs=2e-3)
    assert [one.positive for one in found] == [{"Effusion": True}, {"Effusion": False}, {}]
    assert [one.flags for one in found] == [(), (), ("the lungs are on the wrong sides",)]
    masks = [float(one.prob_maps[0].mean()) for one in found]
    assert masks == pytest.approx([1.0, 1.0, 0.25])  # the mean anatomy where the organs are implausible
    assert found[0].anatomy.masks.shape == (3, 40, 30)
    plain = Predictor(predictor.model, replace(predictor.info, calibration=None), Drawer()).predict([bright])[0]
    assert plain.probabilities["Effusion"] == pytest.approx(float(torch.sigmoid(torch.tensor(1.0))), abs=2e-3)
    assert plain.positive == {}


def test_a_film_without_a_mediastinum_gets_no_call() -> None:
    class Lungs(Drawer):
        def predict(self, images: list[Any], batch_size: int, *, keep_probabilities: bool) -> list[Anatomy]:
            masks = np.zeros((3, 96, 80), bool)
            masks[1, 20:70, 8:32] = masks[0, 20:70, 48:72] = masks[2, 50:66, 36:60] = True
            inside = np.ones((3, 8, 8), np.float32)
            return [Anatomy(masks, 0.5, 1.0, ("the heart is large",), inside) for _ in images]

    film = np.full((96, 80), 200, np.uint8)
    film[20:70, 8:32] = film[20:70, 48:72] = 60
    side = film.copy()
    side[20:70, 32:48] = 60
    predictor = Predictor(Reader(), INFO, Lungs())
    frontal, lateral = predictor.predict([film, side])
    assert frontal.flags == ("the heart is large",)
    assert lateral.flags == (LATERAL, "the heart is large")
    assert lateral.positive == {}
    assert "Effusion" in lateral.probabilities


def test_files_arrays_and_types_agree(tmp_path: Path) -> None:
    torch.manual_seed(0)
    film = PhantomXray(1, seed=1, size=64)[0]["image"][0].numpy()
    stored = np.rint(film * 255).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "film.png")
    for model in (AnatomyXNet(2, backbone="tiny"), DenseNetGAP(2, backbone="tiny")):
        predictor = Predictor(model, INFO, Drawer())
        forms = [
            tmp_path / "film.png",
            stored,
            stored.astype(np.float32),
            stored.astype(np.uint16) * 257,
            str(tmp_path / "film.png"),
        ]
        found = [one.probabilities["Effusion"] for one in predictor.predict(forms)]
        assert found == pytest.approx([found[0]] * len(forms), abs=1e-3)
        assert isinstance(predictor.predict(forms[:1])[0], Prediction)
        assert predictor.predict([]) == []


def test_arguments() -> None:
    predictor = Predictor(Reader(), INFO, Drawer())
    with pytest.raises(TypeError, match="images is a str, expected a list"):
        predictor.predict("film.png")
    with pytest.raises(ValueError, match="batch_size is 0"):
        predictor.predict([], batch_size=0)
    with pytest.raises(FileNotFoundError):
        predictor.predict(["none.png"])


def test_a_finding_has_its_map_of_the_finest_stage() -> None:
    maps = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    found = Prediction(
        {"Mass": 0.2, "Edema": 0.6}, {}, (maps, maps[:, :1, :1]), Anatomy(np.zeros((3, 8, 8), bool), 0.5, 0.9, ()), ()
    )
    np.testing.assert_array_equal(found.map_of("Edema"), maps[1])
    shared = replace(found, prob_maps=(maps[:1],))
    np.testing.assert_array_equal(shared.map_of("Edema"), maps[0])
    assert replace(found, prob_maps=()).map_of("Edema") is None
