from __future__ import annotations

from pathlib import Path

import pytest
import torch

from axnet.data import write_nih
from axnet.segment.pretrained import WEIGHTS
from axnet.train import DataConfig, find_segmenter, optional_segmenter, segmenter_for

NIH = DataConfig(data="nih", root="anywhere")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose segmenter was trained on a small organ mask set."""
    base = tmp_path_factory.mktemp("organs")
    root = write_nih(base / "nih", 30, seed=1, size=48, test_fraction=0.3)
    find_segmenter(NIH, segmenter=None, organ_root=root / "organs", out=base / "run", progress=False, epochs=1)
    return base / "run"


def test_trained_on_an_organ_set_and_kept(trained: Path) -> None:
    again = find_segmenter(NIH, segmenter=trained / "segmenter.safetensors", organ_root=None, out=trained.parent / "b")
    beside = segmenter_for(trained.parent / "b" / "model.safetensors", None)
    images = torch.rand(2, 1, 48, 48)
    assert again is not None
    assert again.predict_batch(images).shape == (2, 3, 48, 48)
    torch.testing.assert_close(again.predict_batch(images), beside.predict_batch(images))


def test_when_there_is_none(tmp_path: Path) -> None:
    pretrained = find_segmenter(NIH, segmenter=None, organ_root=None, out=tmp_path / "run")
    assert pretrained is not None
    assert (tmp_path / "run" / "segmenter.safetensors").read_bytes() == WEIGHTS.read_bytes()
    assert find_segmenter(NIH, needed=False, segmenter=None, organ_root=None, out=tmp_path) is None
    assert find_segmenter(DataConfig(), segmenter=None, organ_root=None, out=tmp_path) is None
    weights = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"segmenter is not given and '.*segmenter\.safetensors'"):
        segmenter_for(weights, None)
    with pytest.raises(FileNotFoundError, match="segmenter is not given"):
        optional_segmenter(NIH, weights, None)
    assert optional_segmenter(NIH, weights, None, needed=False) is None
    assert optional_segmenter(DataConfig(), weights, None) is None
