from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from axnet.data import ORGANS, OrganMaskSet
from axnet.data.phantom import cardiothoracic_ratio, render


@pytest.fixture
def organ_root(nih_root: Path) -> Path:
    return nih_root / "organs"


def test_round_trip(phantom_root: Path) -> None:
    data = OrganMaskSet(phantom_root / "organs", "all")
    assert len(data) == 60
    for index in (0, 31):
        sample, item = render(index, seed=3, size=128), data[index]
        assert item["id"] == sample.name
        assert item["ctr"] == pytest.approx(sample.ctr, abs=1e-4)
        assert item["image"].shape == (1, 128, 128)
        assert item["mask"].dtype == torch.float32
        assert np.array_equal(item["mask"].numpy(), sample.masks)
    parts = [OrganMaskSet(phantom_root / "organs", split) for split in ("train", "val", "test")]
    assert all(len(part) for part in parts)
    assert sum(map(len, parts)) == 60


def test_size_organs_transform(phantom_root: Path) -> None:
    data = OrganMaskSet(phantom_root / "organs", "all", size=32, organs=("heart", "left_lung"), transform=dict)
    mask = data[0]["mask"]
    assert mask.shape == (2, 32, 32)
    assert data[0]["image"].shape == (1, 32, 32)
    assert ((mask > 0) & (mask < 1)).any(), "area coverage has soft edges"
    full = render(0, seed=3, size=128).masks
    assert torch.allclose(mask.mean((1, 2)), torch.tensor([full[2].mean(), full[0].mean()]).float(), atol=0.01)


def test_unknown_ctr_is_nan(organ_root: Path) -> None:
    table = pd.read_csv(organ_root / "index.csv")
    table.loc[1, "ctr"] = None
    table.to_csv(organ_root / "index.csv", index=False)
    data = OrganMaskSet(organ_root, "all")
    assert np.isnan(data[1]["ctr"])
    assert not np.isnan(data[0]["ctr"])


def test_errors(organ_root: Path) -> None:
    with pytest.raises(ValueError, match="split is 'train_val', expected one of"):
        OrganMaskSet(organ_root, "train_val")
    with pytest.raises(FileNotFoundError, match=r"holds no index\.csv"):
        OrganMaskSet(organ_root / "masks")
    name = OrganMaskSet(organ_root, "all").ids[0]

    Image.new("1", (10, 10)).save(organ_root / "masks" / "heart" / name)
    with pytest.raises(ValueError, match=rf"mask 'heart/{name}' has shape \(10, 10\), its image has \(64, 64\)"):
        OrganMaskSet(organ_root, "all")[0]
    (organ_root / "masks" / "heart" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 16 files are missing in '.*heart': {name}"):
        OrganMaskSet(organ_root, "all")
    assert len(OrganMaskSet(organ_root, "all", organs=ORGANS[:2])) == 16
    (organ_root / "images" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 16 files are missing in '.*images'"):
        OrganMaskSet(organ_root, "all", organs=ORGANS[:2])


@pytest.mark.parametrize("column", ["image", "split", "ctr"])
def test_missing_column(organ_root: Path, column: str) -> None:
    pd.read_csv(organ_root / "index.csv").drop(columns=column).to_csv(organ_root / "index.csv", index=False)
    with pytest.raises(ValueError, match=f"lacks column '{column}'"):
        OrganMaskSet(organ_root)


def test_unknown_split_in_index(organ_root: Path) -> None:
    pd.read_csv(organ_root / "index.csv").assign(split="holdout").to_csv(organ_root / "index.csv", index=False)
    with pytest.raises(ValueError, match="unknown split 'holdout'"):
        OrganMaskSet(organ_root)


def test_real_wingspan(wingspan: Path) -> None:
    counts = {split: len(OrganMaskSet(wingspan, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 150, "val": 30, "test": 40}
    data = OrganMaskSet(wingspan, "test")
    known = 0
    for index in range(0, 40, 8):
        item = data[index]
        assert item["image"].shape == (1, 256, 256)
        assert item["mask"].shape == (3, 256, 256)
        masks = item["mask"].numpy() > 0
        columns = masks.any(axis=1) * np.arange(256)
        assert columns[0].max() > columns[1].max(), "the patient's left lung lies on the image's right"
        if not np.isnan(item["ctr"]):
            known += 1
            assert cardiothoracic_ratio(masks) == pytest.approx(item["ctr"], abs=0.02)
    assert known
