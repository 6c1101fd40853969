"""Splits by their names: what each part of a run reads of them, packed or not, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from axnet.data import NIHChestXray, write_nih
from axnet.data.joined import in_common
from axnet.data.sets import find
from axnet.train import DataConfig
from axnet.train.packers import Packer
from axnet.train.packing import prepare


@pytest.fixture(scope="module")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 films, with the lists of CheXNet's reproductions, which carry labels, shared out by patient."""
    root = write_nih(tmp_path_factory.mktemp("named") / "nih", 16, size=32, test_fraction=0.3)
    films = NIHChestXray(root, "all")
    patients = sorted(set(films.patients))
    (root / "chexnet").mkdir()
    for place, name in enumerate(("train", "val", "test")):
        mine = set(patients[place::3])
        rows = [f"{film} 0 1" for film, who in zip(films.ids, films.patients, strict=True) if who in mine]
        (root / "chexnet" / f"{name}_list.txt").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize(
    ("data", "asked", "part", "expected"),
    [
        ("nih", None, "test", "test"),
        ("nih", "nih-official", "train", "train_val"),
        ("nih", "nih-official", "test", "test"),
        ("nih", "nih-chexnet", "train", "chexnet-train"),
        ("nih", "all", "train", "all"),
        ("chexpert", "chexpert-valid", "train", "train"),
        ("chexpert", "chexpert-valid", "test", "valid"),
        ("chexpert", "chexpert-test", "test", "test"),
        ("mimic", "mimic-official", "train", "train"),
        ("mimic", "mimic-official", "test", "test"),
    ],
)
def test_what_a_name_is_to_each_part(data: str, asked: str | None, part: str, expected: str) -> None:
    assert find(data).split(part, asked) == expected


def test_reported_names_can_be_asked_for(nih: Path) -> None:
    for split in ("train_val", "test", "all", "chexnet-val"):
        films = NIHChestXray(nih, split)
        assert NIHChestXray(nih, films.split_name).split_hash == films.split_hash
    assert NIHChestXray(nih, "nih-official-test").split_name == "nih-test"


def test_the_random_list_and_packed(nih: Path, tmp_path: Path) -> None:
    asked = DataConfig(data="nih", root=str(nih), split="nih-chexnet")
    prepare(asked, tmp_path, Packer(16), splits=("nih-chexnet",))
    for part in ("train", "test"):
        plain = asked.source(part)  # type: ignore[arg-type]
        assert plain.ids == NIHChestXray(nih, f"chexnet-{part}").ids
        for split in (None, "nih-chexnet", f"nih-chexnet-{part}", f"chexnet-{part}"):
            packed = DataConfig(root=str(tmp_path), split=split).source(part)  # type: ignore[arg-type]
            assert (packed.ids, packed.split_hash, packed.split_name) == (  # type: ignore[attr-defined]
                plain.ids,
                plain.split_hash,
                f"nih-chexnet-{part}",
            )
    with pytest.raises(ValueError, match="split is 'nih-official', expected one of"):
        DataConfig(root=str(tmp_path), split="nih-official").source("train")


def test_lists_that_are_missing_or_share_patients(nih: Path, tmp_path: Path) -> None:
    root = write_nih(tmp_path / "nih", 12, size=32)
    with pytest.raises(FileNotFoundError, match=r"'nih-chexnet-train' needs '.*train_list.txt'.* do not come with"):
        NIHChestXray(root, "nih-chexnet-train")
    with pytest.raises(ValueError, match="split is 'nih-chexnet', expected one of"):
        NIHChestXray(root, "nih-chexnet")
    films = NIHChestXray(root, "all").ids
    (root / "chexnet").mkdir()
    for name in ("train", "test"):
        (root / "chexnet" / f"{name}_list.txt").write_text("\n".join(films))
    with pytest.raises(ValueError, match=r"patients are in both chexnet/train_list.txt and chexnet/test_list.txt"):
        NIHChestXray(root, "chexnet-test")
    (root / "chexnet" / "test_list.txt").write_text("nothing.png 0 1\n")
    with pytest.raises(ValueError, match=r"chexnet/test_list.txt names 1 images that the table lacks: nothing.png"):
        NIHChestXray(root, "chexnet-test")


def test_films_in_common_are_told_by_their_names() -> None:
    assert in_common(["a/1.png", "a/2.png"], ["2.jpg", "3.jpg"]) == ["2"]
    assert in_common(["p1/view1.jpg", "p2/view1.jpg"], ["p2/view1.jpg", "p3/view1.jpg"]) == ["p2/view1.jpg"]
