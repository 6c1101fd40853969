from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from axnet.data import NIH_FINDINGS, NIHChestXray, PhantomXray, organs_to_anatomies, write_nih
from axnet.data.phantom import render, split_seed


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


def test_items(phantom_root: Path) -> None:
    data = PhantomXray(8, seed=1, size=64, split="val")
    item, sample = data[5], render(5, seed=split_seed(1, "val"), size=64)
    nih = NIHChestXray(phantom_root, "all", masks=lambda _: np.zeros((2, 4, 4)))[0]
    assert item.keys() - nih.keys() == {"organ_mask", "ctr"}
    assert nih.keys() <= item.keys()
    for key in nih:
        assert type(item[key]) is type(nih[key])
        if isinstance(nih[key], torch.Tensor):
            assert item[key].dtype == nih[key].dtype
            assert item[key].ndim == nih[key].ndim
    assert np.array_equal(np.rint(item["image"][0].numpy() * 255), sample.image)
    assert np.array_equal(item["organ_mask"].numpy(), sample.masks)
    assert torch.equal(item["mask"], organs_to_anatomies(item["organ_mask"]))
    assert item["ctr"] == sample.ctr
    assert equal(item, data[-3])
    assert equal(item, PhantomXray(3, seed=1, size=64, split="val", start=5)[0])
    with pytest.raises(IndexError):
        data[8]
    assert sum(1 for _ in data) == 8


def test_without_masks_findings_transform() -> None:
    findings = ("Edema", "Atelectasis")
    data = PhantomXray(40, size=32, with_masks=False, findings=findings, transform=lambda item: {**item, "seen": True})
    assert "mask" not in data[0]
    assert "organ_mask" not in data[0]
    assert data[0]["seen"]
    everything = PhantomXray(40).labels
    assert data.labels.shape == (40, 2)
    assert data.labels.dtype == np.float32
    assert np.array_equal(data.labels, everything[:, [NIH_FINDINGS.index(f) for f in findings]])
    assert np.array_equal(data[7]["label"].numpy(), data.labels[7])


def test_splits_are_disjoint() -> None:
    parts = {split: PhantomXray(30, split=split) for split in ("train", "val", "test")}
    assert len({part.split_hash for part in parts.values()}) == 3
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(parts[one].ids) & set(parts[other].ids)
        assert not set(parts[one].patients) & set(parts[other].patients)
        assert not torch.equal(parts[one][0]["image"], parts[other][0]["image"])
    train = parts["train"]
    assert len(set(train.ids)) == 30 > len(set(train.patients))
    assert train[3]["id"] == train.ids[3]
    assert train[3]["patient"] == train.patients[3]
    assert train.split_hash == PhantomXray(30).split_hash != PhantomXray(30, seed=1).split_hash


def test_attributes_need_no_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PhantomXray, "sample", lambda *_: pytest.fail("rendered"))
    data = PhantomXray(12)
    assert data.labels.shape == (12, 14)
    assert len(data.ids) == len(data.patients) == 12
    assert len(data.split_hash) == 64


def test_boxes() -> None:
    data = PhantomXray(12, size=64)
    for index, image_id in enumerate(data.ids):
        assert data.boxes(image_id) == data.sample(index).boxes
    only = PhantomXray(12, size=64, findings=("Infiltration",))
    assert {box.finding for image_id in only.ids for box in only.boxes(image_id)} == {"Infiltration"}
    with pytest.raises(ValueError, match="image_id is 'nobody'"):
        data.boxes("nobody")


@pytest.mark.parametrize("size", [32, 50])
def test_materialize_serves_the_same_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    lazy = [PhantomXray(5, size=size)[index] for index in range(5)]
    data = PhantomXray(5, size=size).materialize(tmp_path / "cache")
    assert data.images is not None
    assert data.images.dtype == torch.uint8
    assert data.images.shape == (5, 1, size, size)
    assert data.organ_masks is not None
    assert data.organ_masks.shape == (5, 3, size, size)
    monkeypatch.setattr(PhantomXray, "sample", lambda *_: pytest.fail("rendered"))
    assert all(equal(data[index], lazy[index]) for index in range(5))
    again = PhantomXray(5, size=size).materialize(tmp_path / "cache")
    assert all(equal(again[index], lazy[index]) for index in range(5))
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".npz"]
    with pytest.raises(pytest.fail.Exception, match="rendered"):
        PhantomXray(5, size=size, seed=1).materialize(tmp_path / "cache")


def test_argument_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split is 'train_val'"):
        PhantomXray(3, split="train_val")
    with pytest.raises(ValueError, match="length and start are -1 and 0"):
        PhantomXray(-1)
    with pytest.raises(ValueError, match="findings has 'Cough'"):
        PhantomXray(3, findings=["Cough"])
    with pytest.raises(ValueError, match="seed is -2"):
        PhantomXray(3, seed=-2)
    with pytest.raises(ValueError, match="test_fraction is 1"):
        write_nih(tmp_path / "a", 4, test_fraction=1)
    with pytest.raises(ValueError, match="n is 1, expected enough images for two patients"):
        write_nih(tmp_path / "b", 1, size=32)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        write_nih(tmp_path / "c", 4)
