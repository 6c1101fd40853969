"""Tables as spreadsheets, pandas and other programs write them, and what a policy file may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from axnet.data import CheXpert, CSVDataset, NIHChestXray, canonical, write_nih
from axnet.data.findings import CHEXPERT_FINDINGS
from axnet.data.joined import among
from axnet.data.uncertainty import read_policy, resolved
from axnet.train import DataConfig

NAMES = ("a.png", "b.png", "ü/c d.png", "x,y.PNG")


def table(folder: Path, text: str, said: dict[str, Any] | None = None, encoding: str = "utf-8") -> Path:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10), 90, np.uint8)).save(folder / name)
    (folder / "t.csv").write_bytes(text.encode(encoding))
    if said is not None:
        (folder / "t.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path,Edema,Mass\na.png,1,0\nb.png,,-1\n", "utf-8"),
        ("path;Edema;Mass\na.png;1;0\nb.png;;-1\n", "utf-8"),  # spreadsheets where a comma is decimal
        ("path\tEdema\tMass\na.png\t1\t0\nb.png\t\t-1\n", "utf-8"),
        ("path, Edema ,Mass\r\na.png, 1 ,0\r\nb.png, , -1\r\n", "utf-8-sig"),
        ('"path","Edema","Mass"\n"a.png","1.0","0.0"\n"b.png","nan","-1.0"\n', "utf-8"),
        (",path,Edema,Mass\n0,a.png,True,False\n,path,Edema,Mass\n1,b.png,,-1\n", "utf-8"),  # index and header again
    ],
)
def test_one_table_written_in_many_ways(tmp_path: Path, text: str, encoding: str) -> None:
    data = CSVDataset(table(tmp_path, text, encoding=encoding), uncertain="ones")
    assert (data.ids, data.findings) == (["a.png", "b.png"], ("Edema", "Mass"))
    np.testing.assert_array_equal(data.labels, [[1, 0], [np.nan, 1]])


def test_names_with_commas_spaces_and_other_letters(tmp_path: Path) -> None:
    data = CSVDataset(table(tmp_path, 'path,Edema\n"x,y.PNG",1\nü/c d.png,0\n'))
    assert (data.ids, data.labels.ravel().tolist()) == (["x,y.PNG", "ü/c d.png"], [1, 0])
    assert data[1]["image"].shape == (1, 8, 10)


@pytest.mark.parametrize(
    ("text", "said", "words"),
    [
        ("path,Edema,Edema\na.png,1,0\n", None, "has the column 'Edema' more than once"),
        ("path,path ,Edema\na.png,b.png,0\n", None, "has the column 'path' more than once"),
        ("path,Edema,pleural effusion,Effusion\na.png,1,0,0\n", None, "two of which are one finding"),
        ("path,Edema\na.png,1,0\nb.png,0,1\n", None, "cannot be read as CSV .*Expected 2 fields in line 2, saw 3"),
        ("path,Edema,who\na.png,1,x\nb.png,1,\n", {"patient": "who"}, "has no who in row 2"),
        ("path,Edema\na.png,1\n", {"labels": "Edema"}, "has labels 'Edema', expected a list"),
        ("path,Edema\na.png,1\n", {"labels": []}, r"has labels \[\], expected a list of one or more"),
        ("path,Edema\na.png,1\n", {"path": 3}, "has path 3, expected a text"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(
    tmp_path: Path, text: str, said: dict[str, Any] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        CSVDataset(table(tmp_path, text, said))


def test_null_in_the_description_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    said = {"patient": None, "images": None, "labels": None}
    assert CSVDataset(table(tmp_path, "path,Edema\na.png,1\n", said)).findings == ("Edema",)


def test_films_without_a_split_are_on_no_side(tmp_path: Path) -> None:
    text = "path,Edema,who,fold\na.png,1,x,train\nb.png,1,x,\n"
    folder = table(tmp_path, text, {"patient": "who", "split": "fold"})
    assert CSVDataset(folder, "train").ids == ["a.png"]
    with pytest.raises(ValueError, match=r"split is 'test', expected one of \('all', 'train'\)"):
        CSVDataset(folder, "test")


def test_views_in_small_letters(tmp_path: Path) -> None:
    text = "path,Edema,v\na.png,1,pa\nb.png,1,Lateral\nü/c d.png,1,Ap\n"
    folder = table(tmp_path, text, {"view": "v"})
    for view, ids in (("frontal", ["a.png", "ü/c d.png"]), ("AP", ["ü/c d.png"]), ("lateral", ["b.png"])):
        assert CSVDataset(folder, views=view).ids == ids


def test_canonical_names_in_any_spelling() -> None:
    for written in ("Pleural Effusion", "pleural_effusion", " EFFUSION ", "Effusion"):
        assert canonical(written) == "Effusion"
    assert canonical("pleural thickening") == "Pleural_Thickening"
    assert canonical("no_finding") == "No Finding"
    assert canonical("Tree_in bud") == "Tree_in bud"


def chexpert(root: Path) -> Path:
    head = ",".join(["Path", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS])
    lines = {"train": [head], "valid": [head]}
    for number in range(4):
        side = "train" if number < 3 else "valid"
        path = f"CheXpert-v1.0-small/{side}/patient{number:05d}/study1/view1_frontal.jpg"
        lines[side].append(",".join([path, "Frontal", "AP", *["-1.0"] * len(CHEXPERT_FINDINGS)]))
        film = root / path
        film.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(film)
    for side, rows in lines.items():
        (root / "CheXpert-v1.0-small" / f"{side}.csv").write_text("\n".join(rows) + "\n")
    return root / "CheXpert-v1.0-small"


def test_a_list_of_chexpert_films_as_its_table_has_them(tmp_path: Path) -> None:
    root = chexpert(tmp_path)
    mine = tmp_path / "mine.txt"
    mine.write_text("CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg\r\n\r\n", encoding="utf-8-sig")
    assert CheXpert(root, str(mine)).ids == ["train/patient00001/study1/view1_frontal.jpg"]


def test_chexpert_as_it_is_downloaded_in_parts(tmp_path: Path) -> None:
    """Tables and validation films in the first part, training films by patient in the others."""
    whole = chexpert(tmp_path)
    first = whole.rename(tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)")
    for number, name in ((2, "CheXpert-v1.0 batch 2 (train 1)"), (0, "CheXpert-v1.0 batch 3 (train 2)")):
        patients = sorted((first / "train").iterdir())[number // 2 :]
        (tmp_path / name).mkdir()
        for patient in patients:
            patient.rename(tmp_path / name / patient.name)
    for root in (tmp_path, first):
        data = CheXpert(root)
        assert len(data) == 3
        assert data.ids[0] == "train/patient00000/study1/view1_frontal.jpg"
        assert data.path(data.ids[0]).parts[-4] == "CheXpert-v1.0 batch 3 (train 2)"
        assert data[2]["image"].shape == (1, 8, 8)
        assert len(CheXpert(root, "valid")) == 1


def test_a_policy_of_all_findings_serves_a_choice_of_them(tmp_path: Path) -> None:
    policy = {"Lung Opacity": "ones", "pleural effusion": "zeros"}  # by any of their names
    data = CheXpert(chexpert(tmp_path), findings=("Effusion", "Edema"), uncertain=policy)
    np.testing.assert_array_equal(data.labels[0], [0, np.nan])
    with pytest.raises(ValueError, match="uncertain has the entry 'Hernia', expected findings out of"):
        CheXpert(tmp_path, findings=("Effusion",), uncertain={"Hernia": "ones"})
    with pytest.raises(ValueError, match="two of which are one finding"):
        CheXpert(tmp_path, uncertain={"Effusion": "ones", "Pleural Effusion": "zeros"})


def test_a_policy_for_sets_that_are_joined(tmp_path: Path) -> None:
    """NIH has no Lung Opacity, and need not."""
    nih = write_nih(tmp_path / "nih", 8, size=32)
    config = DataConfig("nih,chexpert", f"{nih},{chexpert(tmp_path)}", uncertain={"Lung Opacity": "ones", "*": "zeros"})
    data = config.source("train")
    drawn = data.labels[-1]
    assert drawn[data.findings.index("Lung Opacity")] == 1
    assert drawn[data.findings.index("Edema")] == 0
    assert np.isnan(drawn[data.findings.index("Hernia")])
    wrong = DataConfig("nih,chexpert", f"{nih},{tmp_path}", uncertain={"Oedema": "ones"})
    with pytest.raises(ValueError, match="uncertain has the entry 'Oedema', expected findings out of"):
        wrong.source("train")


def test_a_policy_in_words(tmp_path: Path) -> None:
    for text in ("smooth(0.6, 0.8)", "smooth,0.6,0.8", " smooth( .6,0.80 )"):
        assert resolved(read_policy(text), ("Edema",)) == [(0.6, 0.8)]
    policy = read_policy('{"Edema": "smooth(0.1,0.2)", "*": ["smooth", 0, 0.5]}')
    assert resolved(policy, ("Edema", "Mass")) == [(0.1, 0.2), (0.0, 0.5)]
    (tmp_path / "p.json").write_text(json.dumps({"Edema": "maybe"}))
    for wrong in ("smooth(0.9,0.1)", "smooth(0.1)", "smooth(.,1)", "smooth(0.5,1.5)", str(tmp_path / "p.json")):
        with pytest.raises(ValueError, match=r"^uncertain is .*, expected 'zeros'"):
            read_policy(wrong)


def test_a_list_with_a_byte_order_mark(tmp_path: Path) -> None:
    root = write_nih(tmp_path / "nih", 12, size=32)
    ids = NIHChestXray(root, "train_val").ids
    path = root / "train_val_list.txt"
    path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n"), encoding="utf-8")
    assert NIHChestXray(root, "train_val").ids == ids


def test_films_that_a_run_on_several_sets_saw() -> None:
    """Joined writes the set before a film; what was seen in training is recognised with it and without."""
    seen = ["nih/1.png", "nih/2.png", "chexpert/train/p1/s1/view1.jpg", "chexpert/train/p2/s1/view1.jpg"]
    assert among(["2.png", "3.png"], seen) == ["2.png"]
    assert among(["train/p2/s1/view1.jpg", "valid/p3/s1/view1.jpg"], seen) == ["train/p2/s1/view1.jpg"]
    assert among(["nih/1.png", "chexpert/valid/p3/s1/view1.jpg"], seen) == ["nih/1.png"]
    assert among(["nih/1.png", "nih/9.png"], ["1.png", "2.png"]) == ["nih/1.png"]
    assert among(["a/1.png"], ["a/1.png", "b/1.png"]) == ["a/1.png"]
    assert among(["c/1.png"], ["a/1.png", "b/1.png"]) == []
