from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from axnet.data import NIHChestXray, OrganMaskSet, PhantomXray, sets, write_nih
from axnet.models import Preprocessing
from axnet.train import DataConfig, open_part

NEW = '''
"""A set that one file adds."""

from axnet.data.phantom import PhantomXray
from axnet.data.sets import DataSet


def _open(request):
    return PhantomXray(request.count, size=32, findings=("Mass", "Hernia"), split=request.split)


DATASET = DataSet(title="the new set", root=None, open=_open, splits={"train": "val", "test": "test"}, real=False)
'''


def test_known_sets(tmp_path: Path) -> None:
    assert {"nih", "phantom", "wingspan"} <= set(sets.names())
    root = write_nih(tmp_path / "nih", 24, size=48, test_fraction=0.3)
    request = sets.Request("test", root=str(root), count=3, size=32)
    assert isinstance(sets.find("phantom").open(request), PhantomXray)
    assert isinstance(sets.find("nih", root=str(root)).open(request), NIHChestXray)
    organs = sets.find("wingspan", organs=True, root="x").open_organs(sets.Request("test", root=str(root / "organs")))
    assert isinstance(organs, OrganMaskSet)
    assert sets.find("phantom", organs=True).open_organs(request)[0]["organ_mask"].shape == (3, 32, 32)
    for name in sets.names():
        entry = sets.load(name)
        assert entry.title
        assert entry.open_organs or set(entry.splits) >= {"train", "test"}


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"data is 'chestmnist', expected .*'nih' or 'phantom'\.$"):
        DataConfig(data="chestmnist")
    with pytest.raises(ValueError, match="data is 'wingspan', expected"):
        DataConfig(data="wingspan", root="x")
    with pytest.raises(ValueError, match="data is 'nih', expected 'phantom' or 'wingspan'"):
        sets.find("nih", organs=True)
    with pytest.raises(ValueError, match="data 'wingspan' needs root, the folder of the organ mask set"):
        sets.find("wingspan", organs=True, root=None)


def test_a_mistyped_root_is_no_wish_for_phantoms(tmp_path: Path) -> None:
    root = write_nih(tmp_path / "nih", 8, size=32)
    with pytest.raises(
        ValueError, match=r"is no folder of axnet prepare.* it looks like NIH ChestX-ray14 \(data 'nih'"
    ):
        DataConfig(root=str(root)).source("train")
    (tmp_path / "half" / ".prepare").mkdir(parents=True)
    with pytest.raises(ValueError, match="; axnet prepare has not come to its end there"):
        DataConfig(root=str(tmp_path / "half")).source("train")
    with pytest.raises(ValueError, match="root 'gone' is no folder of axnet prepare, and data 'phantom' is drawn"):
        DataConfig(root="gone").source("test")


def test_a_new_set_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "newcomer.py").write_text(NEW)
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path)])
    assert "newcomer" in sets.names()
    data = open_part(DataConfig(data="newcomer", train_images=4, workers=0), "train", Preprocessing(size=32))
    assert data.findings == ("Mass", "Hernia")
    assert data.ids[0].startswith("phantom-0-val")


def test_the_names_cost_no_heavy_import() -> None:
    code = (
        "import sys; from axnet.cli import options; print([m for m in ('torch', 'pandas', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
