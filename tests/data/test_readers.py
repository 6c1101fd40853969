"""Readers of CheXpert, MIMIC-CXR-JPG and CSV tables, on miniatures of each as it is downloaded."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from axnet.data import CHEXPERT_FINDINGS, MIMICCXR, CheXpert, CSVDataset, NIHChestXray, canonical, sets, write_nih
from axnet.data.sets.csv import Columns
from axnet.data.splits import split_hash

CHEXPERT_HEAD = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
# MIMIC's tables have them in alphabetical order
MIMIC_HEAD = sorted(CHEXPERT_HEAD)
BLANK, NO, YES, MAYBE = "", "0.0", "1.0", "-1.0"


def film(path: Path, level: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10), level, np.uint8)).save(path)


def labels(**values: str) -> dict[str, str]:
    return {name: values.get(name.replace(" ", "_"), BLANK) for name in CHEXPERT_HEAD}


def write(path: Path, rows: list[dict[str, str]], head: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, head or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def chexpert_row(name: str, path: str, front: str = "Frontal", exact: str = "AP", **values: str) -> dict[str, str]:
    who = {"Path": f"{name}/{path}", "Sex": "Female", "Age": "68", "Frontal/Lateral": front, "AP/PA": exact}
    return who | labels(**values)


@pytest.fixture(params=["CheXpert-v1.0-small", "CheXpert-v1.0"])
def chexpert(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, root = request.param, tmp_path / request.param
    train = [
        chexpert_row(
            name, "train/patient00001/study1/view1_frontal.jpg", Cardiomegaly=YES, Edema=MAYBE, Pleural_Effusion=MAYBE
        ),
        chexpert_row(name, "train/patient00001/study1/view2_lateral.jpg", "Lateral", "", Cardiomegaly=YES, Edema=MAYBE),
        chexpert_row(name, "train/patient00001/study2/view1_frontal.jpg", exact="PA", No_Finding=YES, Edema=NO),
        chexpert_row(name, "train/patient00002/study1/view1_frontal.jpg", Edema=YES, Pleural_Effusion=YES),
    ]
    valid = [chexpert_row(name, "valid/patient64541/study1/view1_frontal.jpg", **dict.fromkeys(["Edema"], YES))]
    valid[0] |= {finding: NO for finding in CHEXPERT_HEAD if valid[0][finding] == BLANK}
    write(root / "train.csv", train)
    write(root / "valid.csv", valid)
    for k, row in enumerate(train + valid):
        film(tmp_path / row["Path"], 50 + 20 * k)
    return root


def test_chexpert(chexpert: Path) -> None:
    data = CheXpert(chexpert)
    assert data.ids == [
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00001/study2/view1_frontal.jpg",
        "train/patient00002/study1/view1_frontal.jpg",
    ]
    assert data.findings == CHEXPERT_FINDINGS
    assert data.findings == tuple(map(canonical, CHEXPERT_HEAD))
    assert data.patients == ["patient00001", "patient00001", "patient00002"]
    assert data.split_hash == split_hash(data.ids)
    assert data.split_name == "chexpert-train"
    item = data[1]
    assert (item["view"], item["patient"], item["image"].shape) == ("PA", "patient00001", (1, 8, 10))
    assert item["image"].mean() == pytest.approx(90 / 255, abs=0.01)
    assert torch.equal(item["label"], torch.from_numpy(data.labels[1]))
    assert data.path(data.ids[0]).is_file()
    edema, effusion = CHEXPERT_FINDINGS.index("Edema"), CHEXPERT_FINDINGS.index("Effusion")
    np.testing.assert_array_equal(data.labels[:, edema], [np.nan, 0, 1])
    np.testing.assert_array_equal(data.labels[:, effusion], [np.nan, 0, 1])
    # the folder above, and a folder of another name, serve as well
    assert CheXpert(chexpert.parent).ids == data.ids
    moved = chexpert.rename(chexpert.with_name("renamed"))
    assert CheXpert(moved).ids == data.ids
    assert CheXpert(moved, "chexpert-valid").labels[0].sum() == 1


@pytest.mark.parametrize(
    ("views", "count"), [("all", 4), ("frontal", 3), ("lateral", 1), ("PA", 1), ("AP", 2), (("PA", "lateral"), 2)]
)
def test_views(chexpert: Path, views: str, count: int) -> None:
    assert len(CheXpert(chexpert, views=views)) == count


def test_the_test_set_has_a_row_per_film_or_per_study(chexpert: Path) -> None:
    for name in ("view1_frontal.jpg", "view2_lateral.jpg"):
        film(chexpert / "test" / "patient64741" / "study1" / name)
    (chexpert / "test" / "patient64741" / "study1" / "._view1_frontal.jpg").write_bytes(b"\0\5\x16\7")
    known = {finding: "1" if finding == "Edema" else "0" for finding in CHEXPERT_HEAD}
    write(chexpert / "groundtruth.csv", [{"Study": "CheXpert-v1.0/test/patient64741/study1", **known}])
    by_study = CheXpert(chexpert, "test", findings=("Edema", "Pleural Effusion"))
    assert by_study.ids == ["test/patient64741/study1/view1_frontal.jpg"]
    assert by_study.findings == ("Edema", "Effusion")
    assert by_study.labels.tolist() == [[1, 0]]
    assert len(CheXpert(chexpert, "test", views="all")) == 2
    write(chexpert / "test.csv", [{"Path": "test/patient64741/study1/view1_frontal.jpg", **known}])
    by_film = CheXpert(chexpert, "chexpert-test", findings=("Edema", "Effusion"))
    assert (by_film.ids, by_film.labels.tolist()) == (by_study.ids, by_study.labels.tolist())


@pytest.mark.parametrize(
    ("policy", "edema", "effusion"),
    [
        ("zeros", 0, 0),
        ("ones", 1, 1),
        ("ignore", np.nan, np.nan),
        ({"Edema": "ones", "Effusion": "zeros"}, 1, 0),
        ({"Edema": "ones"}, 1, np.nan),
        ({"Edema": "zeros", "*": "ones"}, 0, 1),
        (("smooth", 0.3, 0.3), np.float32(0.3), np.float32(0.3)),
        ({"Edema": ["smooth", 0, 0], "*": "ignore"}, 0, np.nan),
    ],
)
def test_policies(chexpert: Path, policy: object, edema: float, effusion: float) -> None:
    data = CheXpert(chexpert, findings=("Edema", "Effusion"), uncertain=policy)
    np.testing.assert_array_equal(data.labels, [[edema, effusion], [0, 0], [1, 1]])


def test_smooth_labels_are_drawn_once_for_all(chexpert: Path) -> None:
    one = CheXpert(chexpert, findings=("Edema", "Effusion"), uncertain="smooth").labels
    other = CheXpert(chexpert, findings=("Effusion", "Edema"), uncertain="smooth", views="all").labels
    assert 0.55 <= one[0].min() < one[0].max() <= 0.85
    np.testing.assert_array_equal(other[0], one[0, ::-1])
    assert other[1, 1] not in (one[0, 0], 0, 1)  # another film


def test_blank_and_counts(chexpert: Path) -> None:
    counts = CheXpert(chexpert, uncertain="ones").counts()
    assert counts.loc["Edema"].tolist() == [2, 1, 0, 1, 0]
    assert counts.loc["Effusion"].tolist() == [2, 1, 0, 1, 1]
    left = CheXpert(chexpert, blank="ignore").counts()
    assert left.loc["Effusion"].tolist() == [1, 0, 2, 1, 1]
    assert left.loc["Fracture"].tolist() == [0, 0, 3, 0, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"uncertain": "maybe"}, "uncertain is 'maybe', expected 'zeros', 'ones'"),
        ({"uncertain": ("smooth", 0.9, 0.1)}, "uncertain is .*smooth.*, expected"),
        ({"uncertain": {"Oedema": "ones"}}, "uncertain has the entry 'Oedema', expected findings out of"),
        ({"uncertain": {"Edema": 3}}, "uncertain is 3, expected"),
        ({"blank": "ones"}, "blank is 'ones', expected 'zeros' or 'ignore'"),
        ({"findings": ("Hernia",)}, r"findings has 'Hernia', expected labels out of \('No Finding'"),
        ({"views": "back"}, "views is 'back', expected one or several of"),
        ({"views": ()}, r"views is \(\), expected"),
        ({"split": "dev"}, r"split is 'dev', expected one of \('train', 'valid', 'test'\)"),
        ({"split": "valid", "views": "lateral"}, "views 'lateral' leaves none of the 1 films .* whose views are: AP"),
    ],
)
def test_wrong_arguments_get_one_sentence(chexpert: Path, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CheXpert(chexpert, **arguments)


def test_content_that_contradicts_itself(chexpert: Path) -> None:
    text = (chexpert / "train.csv").read_text()
    for change, words in (
        (("Pleural Effusion", "Ergus"), "train.csv' lacks column 'Effusion', expected .* it has .*'Ergus'"),
        (("Path", "File"), "train.csv' lacks column 'Path'"),
        ((",1.0", ",2.0"), "train.csv' has .* '2.0' in row 3, expected 0, 1, -1 or blank"),
        (("patient00002/study1", "patient00001/study1"), "train.csv' lists 1 films more than once: train/patient00001"),
    ):
        (chexpert / "train.csv").write_text(text.replace(*change))
        with pytest.raises(ValueError, match=words):
            CheXpert(chexpert)
    # headers that come again, as where files were put together, and a byte order mark, are no films
    lines = text.splitlines()
    (chexpert / "train.csv").write_text("\ufeff" + "\n".join([*lines[:3], lines[0], *lines[3:]]))
    assert len(CheXpert(chexpert)) == 3
    shared = text.replace("patient00002", "patient64541")
    (chexpert / "train.csv").write_text(shared)
    with pytest.raises(ValueError, match="1 patients are in both 'train' and 'valid': patient64541"):
        CheXpert(chexpert)
    (chexpert / "train.csv").write_text(text)
    (chexpert / "train/patient00002/study1/view1_frontal.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images of split 'train' are missing: .*patient00002"):
        CheXpert(chexpert)


# ---- MIMIC-CXR-JPG

FILMS = [  # dicom, subject, study, view, split
    ("02aa804e-bde0afdd", "10000032", "50414267", "PA", "train"),
    ("174413ec-4ec4c1f7", "10000032", "50414267", "LATERAL", "train"),
    ("2a2277a9-b0ded155", "10000032", "53189527", "AP", "train"),
    ("68b5c4b1-227d0485", "10000764", "57375967", "AP", "validate"),
    ("096052b7-d256dc40", "10000898", "50771383", "", "test"),
    ("b79e55c3-735ce5ac", "10000898", "54205396", "PA", "test"),
    ("dc5d1f7f-00000000", "10000935", "50578979", "PA", "test"),  # no labels
]


@pytest.fixture(params=["", ".gz"])
def mimic(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = tmp_path / "mimic-cxr-jpg"
    head = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows"]
    metadata = [dict(zip(head, (d, s, t, "CHEST (PA AND LAT)", v, "3056"), strict=True)) for d, s, t, v, _ in FILMS]
    split = [{"dicom_id": d, "study_id": t, "subject_id": s, "split": side} for d, s, t, _, side in FILMS]
    studies = dict.fromkeys((s, t) for _, s, t, _, _ in FILMS[:-1])
    found = dict.fromkeys(MIMIC_HEAD, BLANK)
    chexpert = [{"subject_id": s, "study_id": t, **found} for s, t in studies]
    chexpert[0] |= {"Edema": MAYBE, "Pleural Effusion": YES}
    negbio = [{**row, "Edema": NO} for row in chexpert]
    for name, rows in (("metadata", metadata), ("split", split), ("chexpert", chexpert), ("negbio", negbio)):
        path = root / f"mimic-cxr-2.0.0-{name}.csv"
        write(path, rows)
        if request.param:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    for dicom, subject, study, _, _ in FILMS:
        film(root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg")
    return root


def test_mimic(mimic: Path) -> None:
    data = MIMICCXR(mimic, findings=("Edema", "Effusion", "Cardiomegaly"), uncertain="ones")
    assert data.ids == [FILMS[0][0], FILMS[2][0]]
    assert data.patients == ["10000032"] * 2
    assert data.labels.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert data[0]["view"] == "PA"
    assert data[0]["image"].shape == (1, 8, 10)
    assert data.split_name == "mimic-official-train"
    negbio = MIMICCXR(mimic, findings=("Edema",), labeller="negbio")
    assert negbio.labels.tolist() == [[0], [0]]
    assert MIMICCXR(mimic, "validate").ids == [FILMS[3][0]]
    assert MIMICCXR(mimic, "mimic-official-test").ids == [FILMS[5][0]]
    assert MIMICCXR(mimic, "test", views="all").ids == [FILMS[4][0], FILMS[5][0]]
    assert len(MIMICCXR(mimic, "all", views="all")) == 6
    assert MIMICCXR(mimic, "all").findings == CHEXPERT_FINDINGS
    next(mimic.glob("*-chexpert.csv*")).unlink()  # NegBio's labels alone serve the commands
    data = sets.find("mimic", root=str(mimic)).open(sets.Request("train", str(mimic), ("Edema",)))
    assert data.labels.tolist() == [[0], [0]]


def test_mimic_errors(mimic: Path) -> None:
    with pytest.raises(ValueError, match="split is 'dev', expected one of"):
        MIMICCXR(mimic, "dev")
    with pytest.raises(ValueError, match="labeller is 'gpt', expected one of"):
        MIMICCXR(mimic, labeller="gpt")
    next(mimic.glob("*negbio*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no mimic-cxr-2.\*-negbio.csv"):
        MIMICCXR(mimic, labeller="negbio")
    next(mimic.rglob("*.jpg"), None)
    for path in mimic.rglob("2a2277a9*.jpg"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images of split 'train' are missing: .*2a2277a9"):
        MIMICCXR(mimic)


def test_mimic_patients_on_both_sides(mimic: Path) -> None:
    path = next(mimic.glob("*split*"))
    packed = path.suffix == ".gz"
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    text = text.replace("10000764,validate", "10000764,test").replace("10000032,train", "10000032,test", 1)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(ValueError, match="1 patients are in both 'test' and 'train': 10000032"):
        MIMICCXR(mimic)


# ---- any table

ROWS = [
    {
        "path": f"films/{k}.png",
        "patient_id": f"p{k // 2}",
        "fold": side,
        "position": view,
        "Pleural Effusion": e,
        "Mass": m,
    }
    for k, (side, view, e, m) in enumerate(
        [("train", "PA", "1", "0"), ("train", "LL", "-1", "0"), ("test", "PA", "", "1"), ("test", "AP", "0", "")]
    )
]
COLUMNS = Columns(patient="patient_id", split="fold", view="position")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write(tmp_path / "set" / "films.csv", ROWS)
    for row in ROWS:
        film(tmp_path / "set" / row["path"])
    return tmp_path / "set" / "films.csv"


def test_a_table_with_its_description(table: Path) -> None:
    data = CSVDataset(table, "train", columns=COLUMNS)
    assert (data.ids, data.patients) == (["films/0.png", "films/1.png"], ["p0", "p0"])
    assert data.findings == ("Effusion", "Mass")
    np.testing.assert_array_equal(data.labels, [[1, 0], [np.nan, 0]])
    assert data[0]["view"] == "PA"
    assert CSVDataset(table, "test", columns=COLUMNS, views="frontal", blank="zeros").labels.tolist() == [
        [0, 1],
        [0, 0],
    ]
    said = {"patient": "patient_id", "split": "fold", "view": "position", "labels": ["Mass"]}
    table.with_suffix(".json").write_text(json.dumps(said))
    described = CSVDataset(table.parent, "test")
    assert (described.ids, described.findings) == (["films/2.png", "films/3.png"], ("Mass",))
    assert described.split_name == "films-test"
    packed = table.with_name("films.csv.gz")
    packed.write_bytes(gzip.compress(table.read_bytes()))
    assert CSVDataset(packed, "test").ids == described.ids


def test_a_table_without_splits_is_shared_out_by_patient(tmp_path: Path) -> None:
    rows = [{"path": f"{k}.png", "who": f"p{k % 40}", "Mass": str(k % 2)} for k in range(120)]
    write(tmp_path / "t.csv", rows)
    for row in rows:
        film(tmp_path / row["path"])
    columns = Columns(patient="who")
    train, test = (CSVDataset(tmp_path, split, columns=columns, seed=3) for split in ("train", "test"))
    assert sorted(train.ids + test.ids) == sorted(row["path"] for row in rows)
    assert not set(train.patients) & set(test.patients)
    assert 0 < len(test) < 60
    assert test.ids != CSVDataset(tmp_path, "test", columns=columns, seed=4).ids
    assert test.split_name == "t-test-random-0.2-seed-3"


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (("path", "where"), {}, r"lacks column 'path', expected \['path'.* it has \['where', 'patient_id'"),
        (("", ""), {"columns": Columns(labels=("Hernia",))}, "lacks column 'Hernia', expected .* it has"),
        (("fold", "side"), {"columns": COLUMNS}, "lacks column 'fold'"),
        (("", ""), {"columns": COLUMNS, "split": "val"}, r"split is 'val', expected one of \('all', 'test', 'train'\)"),
        (("p1,test,AP", "p0,test,AP"), {"columns": COLUMNS}, "1 patients are in both 'test' and 'train': p0"),
        (("films/3.png", ""), {}, "has no path in row 4"),
        (("films/3.png", "films/2.png"), {}, "lists 1 films more than once: films/2.png"),
        (("1,0", "5,7"), {"columns": Columns(labels=("Mass",))}, "has Mass '7' in row 1, expected 0, 1, -1 or blank"),
        (("", ""), {"columns": COLUMNS, "views": "lateral", "split": "test"}, "views 'lateral' leaves none of the 2"),
        (("", ""), {"findings": ("Edema",)}, r"findings has 'Edema', expected labels out of \('Effusion', 'Mass'\)"),
        (("", ""), {"test_fraction": 1.5}, "test_fraction is 1.5, expected a number between 0 and 1"),
        (("Mass", "Effusion"), {}, "two of which are one finding"),
    ],
)
def test_table_errors(table: Path, change: tuple[str, str], arguments: dict[str, object], words: str) -> None:
    table.write_text(table.read_text().replace(*change) if change[0] else table.read_text())
    with pytest.raises(ValueError, match=words):
        CSVDataset(table, **arguments)


def test_tables_that_are_none(table: Path) -> None:
    only = [{"path": row["path"], "age": "58"} for row in ROWS]
    write(table, only)
    with pytest.raises(ValueError, match=r"has no column of labels .* it has \['path', 'age'\]"):
        CSVDataset(table)
    table.with_suffix(".json").write_text('{"image": "path"}')
    with pytest.raises(ValueError, match=r"has the entry 'image', expected \['path', 'labels'"):
        CSVDataset(table)
    write(table.with_name("other.csv"), only)
    with pytest.raises(ValueError, match="holds 2 CSV files"):
        CSVDataset(table.parent)


def test_a_folder_of_another_set_is_recognised(chexpert: Path, mimic: Path, tmp_path: Path) -> None:
    nih = write_nih(tmp_path / "nih", 8, size=32)
    for reader, root, words in (
        (CheXpert, nih, r"holds no train.csv.* it looks like NIH ChestX-ray14 \(data 'nih'\)"),
        (CheXpert, mimic, "it looks like MIMIC-CXR-JPG"),
        (CSVDataset, chexpert, r"holds no single CSV file, .* it looks like CheXpert \(data 'chexpert'\)"),
        (MIMICCXR, chexpert, r"holds no mimic-cxr.* it looks like CheXpert \(data 'chexpert'\)"),
        (NIHChestXray, chexpert, r"holds no Data_Entry_2017\*.csv.* it looks like CheXpert"),
        (NIHChestXray, nih / "images", r"expected the folder of the NIH download.*split lists\)\.$"),
        (CheXpert, tmp_path / "nowhere", "nowhere' does not exist"),
        (CSVDataset, nih / "images", "holds no CSV file"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            reader(root)


def test_they_are_in_the_registry(chexpert: Path, mimic: Path, table: Path) -> None:
    assert {"chexpert", "mimic", "csv"} <= set(sets.names())
    for name, root, kind in (("chexpert", chexpert, CheXpert), ("mimic", mimic, MIMICCXR), ("csv", table, CSVDataset)):
        entry = sets.find(name, root=str(root))
        for part in ("train", "test"):
            options = {"uncertain": "ones"} | ({"columns": COLUMNS} if name == "csv" else {})
            data = entry.open(sets.Request(entry.splits[part], root=str(root), options=options))
            assert isinstance(data, kind)
            assert not np.isnan(data.labels).any() or name == "csv"
            assert (
                data.fingerprint()
                == entry.open(sets.Request(entry.splits[part], root=str(root), options=options)).fingerprint()
            )


def test_lists_of_ones_own(chexpert: Path, mimic: Path, table: Path, tmp_path: Path) -> None:
    nih = write_nih(tmp_path / "nih", 12, size=32, test_fraction=0.3)
    some = tmp_path / "mine.txt"
    for reader, root, prefix in (
        (NIHChestXray, nih, "nih"),
        (CheXpert, chexpert, "chexpert"),
        (MIMICCXR, mimic, "mimic"),
        (CSVDataset, table, "films"),
    ):
        whole = reader(root, "train" if reader is CheXpert else "all")
        chosen = whole.ids[::2]
        some.write_text("\ufeff" + "\n".join(reversed(chosen)) + "\n\n")
        data = reader(root, str(some))
        assert data.ids == chosen
        assert data.split_hash == split_hash(chosen)
        assert data.split_name == f"{prefix}-mine"
        np.testing.assert_array_equal(data.labels, whole.labels[::2])
        if reader is NIHChestXray:  # as CheXNet's reproductions write it
            some.write_text("\n".join(f"{name} 0 1 0" for name in chosen))
            assert reader(root, str(some)).ids == chosen
        some.write_text(f"{chosen[0]}\nnone")
        with pytest.raises(ValueError, match=r"mine.txt'? names 1 (films|images) that .* lacks?: none"):
            reader(root, str(some))
        some.write_text(f"{chosen[0]}\n{chosen[0]}")
        with pytest.raises(ValueError, match="names 1 films more than once"):
            reader(root, str(some))
        some.write_text(" ")
        with pytest.raises(ValueError, match=r"mine.txt' is empty"):
            reader(root, str(some))
        with pytest.raises(FileNotFoundError, match=r"split list 'none.txt' does not exist"):
            reader(root, "none.txt")
