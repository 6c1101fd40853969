from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from axnet.data import CSVDataset, Joined, NIHChestXray, PhantomXray, write_nih
from axnet.models import Preprocessing
from axnet.train import FitConfig, collect, fit, with_blank_masks


def two(tmp_path: Path) -> dict[str, object]:
    root = write_nih(tmp_path / "nih", 12, size=48, test_fraction=0.3)
    return {
        "nih": NIHChestXray(root, "train_val", findings=("Effusion", "Mass"), size=32),
        "drawn": PhantomXray(12, size=32, findings=("Mass", "Hernia"), with_masks=False),
    }


def test_each_set_keeps_the_labels_that_it_has(tmp_path: Path) -> None:
    sets = two(tmp_path)
    nih, drawn = sets.values()
    data = Joined(sets)
    assert data.findings == ("Effusion", "Mass", "Hernia")
    assert len(data) == len(nih) + 12
    np.testing.assert_array_equal(data.labels[: len(nih), :2], nih.labels)
    np.testing.assert_array_equal(data.labels[len(nih) :, 1:], drawn.labels)
    assert np.isnan(data.labels[: len(nih), 2]).all()
    assert np.isnan(data.labels[len(nih) :, 0]).all()
    assert data.split_name == "nih-train_val+phantom-train-seed-0"
    for index, source, place in (
        (0, nih, 0),
        (len(nih) - 1, nih, len(nih) - 1),
        (len(nih), drawn, 0),
        (len(data) - 1, drawn, 11),
    ):
        item, own = data[index], source[place]
        assert torch.equal(item["image"], own["image"])
        assert item["id"] == f"{'nih' if source is nih else 'drawn'}/{own['id']}" == data.ids[index]
        assert item["patient"] == data.patients[index]
        np.testing.assert_array_equal(item["label"], data.labels[index])
    assert Joined(sets, ("Hernia",)).labels.shape == (len(data), 1)
    with pytest.raises(IndexError, match="expected one of"):
        data[len(data)]
    with pytest.raises(ValueError, match="findings has 'Edema', expected labels that one of the sets has"):
        Joined(sets, ("Edema",))
    with pytest.raises(ValueError, match="sets is empty"):
        Joined({})


def test_films_that_two_sets_have(tmp_path: Path) -> None:
    root = write_nih(tmp_path / "nih", 12, size=32)
    names = NIHChestXray(root, "all").ids
    for folder in ("a", "b"):  # as in CheXpert: the name of a file says nothing
        (root / "images" / folder).mkdir()
        shutil.copy(root / "images" / names[0], root / "images" / folder / "view1.png")
    lines = ["path,Mass", f"images/{names[3]},1", f"images/{names[5]},0", "images/a/view1.png,1"]
    (tmp_path / "one.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "two.csv").write_text("\n".join([*lines, "images/b/view1.png,0"]) + "\n")
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text('{"images": "nih"}')
    one, two = (CSVDataset(tmp_path / f"{name}.csv") for name in ("one", "two"))
    stems = [Path(names[3]).stem, Path(names[5]).stem]
    assert Joined({"nih": NIHChestXray(root, "all"), "table": one}).overlap() == {("nih", "table"): sorted(stems)}
    assert Joined({"one": one, "two": two}).overlap() == {}


def test_a_classifier_learns_from_both(tmp_path: Path) -> None:
    joined = Joined(two(tmp_path))
    data = collect(joined, Preprocessing(size=32), folder=tmp_path / "cache")
    assert torch.isnan(data.labels).any()
    assert torch.equal(collect(joined, Preprocessing(size=32)).images, data.images)
    collect(joined, Preprocessing(size=32), folder=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert data.masks is None
    config = FitConfig(
        out=str(tmp_path / "run"),
        architecture="densenet-gap",
        options={"backbone": "tiny"},
        max_steps=2,
        batch_size=8,
        progress=False,
        logs=False,
        accelerator="cpu",
        select="last",
    )
    assert fit(config, with_blank_masks(data)).steps == 2
