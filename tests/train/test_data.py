from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from axnet.data import NIHChestXray, PhantomXray, organs_to_anatomies, write_nih
from axnet.models import Preprocessing
from axnet.train import DataConfig, collect, measured, open_part, read_images, with_predicted_masks
from axnet.train import data as data_module
from axnet.train.data import Batches

PLAIN = Preprocessing(size=32, percentiles=None)


class Thresholder:
    """A stand-in for a segmenter: bright, dark and middle grey as three organs; counts its calls."""

    calls = 0

    def predict_batch(self, images: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        return torch.cat((images, 1 - images, images / 2), 1)

    def plausible_batch(self, images: torch.Tensor) -> torch.Tensor:
        return self.predict_batch(images).flip(1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"threshold": torch.zeros(1)}


@pytest.mark.parametrize("workers", [0, 2])
def test_collect_keeps_pixels_and_order(workers: int) -> None:
    source = PhantomXray(40, size=32)
    data = collect(source, PLAIN, workers=workers)
    assert data.images.dtype == torch.uint8
    assert data.masks is not None
    for index in (0, 31, 39):
        item = source[index]
        assert torch.equal(data.images[index], (item["image"] * 255).round().to(torch.uint8))
        assert torch.equal(data.masks[index], (item["mask"] * 255).to(torch.uint8))
        assert torch.equal(data.labels[index], item["label"])
        assert (data.ids[index], data.patients[index]) == (item["id"], item["patient"])
    assert data.split_hash == source.split_hash


def test_collect_resizes_and_stretches() -> None:
    source = PhantomXray(4, size=64)
    data = collect(source, Preprocessing(size=32, percentiles=(1, 99)))
    assert data.images.shape == (4, 1, 32, 32)
    assert all(image.min() < 10 and image.max() > 245 for image in data.images)


def test_collect_to_files(tmp_path: Path) -> None:
    source = PhantomXray(5, size=32)
    held, mapped = collect(source, PLAIN), collect(source, PLAIN, folder=tmp_path)
    assert torch.equal(held.images, mapped.images)
    assert held.masks is not None
    assert mapped.masks is not None
    assert torch.equal(held.masks, mapped.masks)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy"}


def test_too_large_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_MEMORY_SHARE", 1e-9)
    with pytest.raises(ValueError, match="name a folder for memory-mapped files"):
        collect(PhantomXray(5, size=32), PLAIN)


def test_no_images() -> None:
    with pytest.raises(ValueError, match="source has no images"):
        collect(PhantomXray(0), PLAIN)


def test_split_by_patient() -> None:
    data = collect(PhantomXray(60, size=32), PLAIN)
    first, second = data.split_by_patient(0.3, seed=1)
    assert len(first) + len(second) == 60
    assert not set(first.patients) & set(second.patients)
    assert second.ids == data.split_by_patient(0.3, seed=1)[1].ids
    assert second.ids != data.split_by_patient(0.3, seed=2)[1].ids
    position = data.ids.index(second.ids[0])
    assert torch.equal(second.images[0], data.images[position])
    with pytest.raises(ValueError, match="fraction is 1, expected"):
        data.split_by_patient(1)
    with pytest.raises(ValueError, match="has 1 patients, expected two or more"):
        data.subset([0]).split_by_patient(0.5)


def test_measured_normalises_to_zero_and_one() -> None:
    data = collect(PhantomXray(20, size=32), PLAIN)
    normal = measured(data).normalize(data.images / 255)
    assert float(normal.mean()) == pytest.approx(0, abs=1e-3)
    assert float(normal.std()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("fallback", [True, False])
def test_predicted_masks(fallback: bool) -> None:
    data = collect(PhantomXray(70, size=32, with_masks=False), PLAIN)
    with pytest.raises(ValueError, match="data has no masks"):
        Batches(data)
    masks = with_predicted_masks(data, Thresholder(), fallback=fallback, batch_size=32).masks
    assert masks is not None
    assert masks.dtype == torch.uint8
    images = data.images.float() / 255
    organs = torch.cat((images, 1 - images, images / 2), 1)
    expected = organs_to_anatomies(organs.flip(1) if fallback else organs)
    assert (masks.float() / 255 - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_predicted_masks_are_cached(tmp_path: Path) -> None:
    config = DataConfig(train_images=6, workers=0, cache=str(tmp_path))
    Thresholder.calls = 0
    first = open_part(config, "train", PLAIN, segmenter=Thresholder())
    second = open_part(config, "train", PLAIN, segmenter=Thresholder())
    assert Thresholder.calls == 1
    assert first.masks is not None
    assert second.masks is not None
    assert torch.equal(first.masks, second.masks)


def test_nih_and_phantom_parts(tmp_path: Path) -> None:
    root = write_nih(tmp_path / "nih", 24, seed=2, size=48, test_fraction=0.3)
    config = DataConfig(data="nih", root=str(root), findings=("Effusion", "Mass"), workers=0)
    train = open_part(config, "train", PLAIN, segmenter=Thresholder())
    test = open_part(config, "test", PLAIN, segmenter=Thresholder())
    official = NIHChestXray(root, "test", findings=("Effusion", "Mass"))
    assert test.ids == tuple(official.ids)
    assert np.array_equal(test.labels.numpy(), official.labels)
    assert test.split_hash == official.split_hash
    assert not set(train.patients) & set(test.patients)
    phantom = open_part(DataConfig(test_images=5, workers=0), "test", PLAIN)
    assert phantom.masks is not None
    assert phantom.ids[0].startswith("phantom-0-test")


def test_read_images(tmp_path: Path) -> None:
    root = write_nih(tmp_path / "nih", 8, seed=2, size=48)
    files = sorted((root / "images").iterdir())
    data = read_images(files, PLAIN)
    assert data.images.shape == (8, 1, 32, 32)
    assert data.ids == tuple(map(str, files))
    with pytest.raises(TypeError, match="paths is a str, expected a list of image files"):
        read_images("film.png", PLAIN)
    with pytest.raises(ValueError, match="paths is empty"):
        read_images([], PLAIN)


def test_config_errors() -> None:
    with pytest.raises(ValueError, match=r"data is 'chestmnist', expected .* or 'phantom'"):
        DataConfig(data="chestmnist")
    with pytest.raises(ValueError, match="needs root, the folder of the NIH download"):
        DataConfig(data="nih")
    with pytest.raises(ValueError, match="size is 0, expected positive"):
        Preprocessing(size=0)
    with pytest.raises(ValueError, match="std is 0, expected a positive"):
        Preprocessing(std=0)
