from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from axnet import checkpoint
from axnet.models import AnatomyXNet, DenseNetGAP, Preprocessing, build_classifier, load_classifier, save_classifier

CLASSES = ("Mass", "Nodule", "Effusion")
PREPROCESSING = Preprocessing(size=64, percentiles=(2.0, 98.0), mean=0.4, std=0.2)


class OneMap(nn.Module):
    channels = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.conv(image)]


def models() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        AnatomyXNet(3, 2, "tiny", reduction=0.25, num_maps="classes", fusion="concat", stages=(1, 3)),
        DenseNetGAP(3, "tiny", in_channels=3),
    ]


@pytest.mark.parametrize("model", models(), ids=["anatomy-xnet", "densenet-gap"])
def test_round_trip(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "model.safetensors"
    model.train()
    save_classifier(path, model, PREPROCESSING, CLASSES, {"epochs": 3})
    assert model.training
    loaded, info = load_classifier(path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert info.classes == CLASSES
    assert info.preprocessing == PREPROCESSING
    assert info.training == {"epochs": 3}
    image, mask = torch.rand(2, 1, 64, 64), torch.rand(2, 2, 64, 64)
    assert torch.equal(loaded(image, mask).logits, model.eval()(image, mask).logits)


def test_own_backbone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = AnatomyXNet(3, 2, OneMap())
    save_classifier(path, model, PREPROCESSING, CLASSES)
    with pytest.raises(ValueError, match="was built on a custom backbone, expected it as backbone="):
        load_classifier(path)
    loaded, _ = load_classifier(path, backbone=OneMap())
    assert torch.equal(loaded.backbone.conv.weight, model.backbone.conv.weight)
    save_classifier(path, models()[1], PREPROCESSING, CLASSES)
    with pytest.raises(ValueError, match="has backbone 'tiny', expected no backbone="):
        load_classifier(path, backbone=OneMap())


def test_other_outputs_than_when_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_classifier(path, models()[0], PREPROCESSING, CLASSES)
    state, metadata = checkpoint.load(path, "classifier")
    state["classifier.weight"] = state["classifier.weight"] + 0.05
    checkpoint.save(path, state, metadata)
    with pytest.raises(ValueError, match="fingerprint"):
        load_classifier(path)


@pytest.mark.parametrize("damage", ["missing", "left over", "has shape"])
def test_weights_of_another_architecture(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    save_classifier(path, models()[1], PREPROCESSING, CLASSES)
    state, metadata = checkpoint.load(path, "classifier")
    if damage == "missing":
        del state["classifier.bias"]
    elif damage == "left over":
        state["head.bias"] = torch.zeros(3)
    else:
        state["classifier.bias"] = torch.zeros(4)
    checkpoint.save(path, state, metadata)
    with pytest.raises(ValueError, match=f"other weights than its architecture: '.*' (is )?{damage}"):
        load_classifier(path)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model is Linear, expected AnatomyXNet or DenseNetGAP"):
        save_classifier(tmp_path / "a.safetensors", nn.Linear(1, 1), PREPROCESSING, CLASSES)
    with pytest.raises(ValueError, match="classes has 1 names, the model has 3 logits"):
        save_classifier(tmp_path / "a.safetensors", models()[1], PREPROCESSING, ("Mass",))


def test_build_errors() -> None:
    with pytest.raises(ValueError, match="architecture is 'vit', expected one of"):
        build_classifier("vit", {})
    with pytest.raises(ValueError, match="does not fit architecture 'densenet-gap'"):
        build_classifier("densenet-gap", {"num_maps": 3})


def test_preprocessing() -> None:
    image = np.linspace(0.2, 0.8, 64 * 64, dtype=np.float32).reshape(64, 64)
    stored = PREPROCESSING.store(image)
    assert stored.dtype == np.uint8
    assert (stored.min(), stored.max()) == (0, 255)
    plain = Preprocessing(size=32, percentiles=None).store(image)
    assert plain.shape == (32, 32)
    assert abs(float(plain.mean()) - 0.5 * 255) < 1
    normal = PREPROCESSING.normalize(torch.tensor([0.0, 1.0]))
    assert normal.tolist() == pytest.approx([-2.0, 3.0])
    assert Preprocessing.from_dict(PREPROCESSING.to_dict()) == PREPROCESSING
    assert Preprocessing.from_dict(Preprocessing(percentiles=None).to_dict()).percentiles is None
