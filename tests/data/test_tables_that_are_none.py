"""Tables that no one can read: every reader names the file, in one sentence."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from axnet.data import MIMICCXR, CheXpert, CSVDataset, NIHChestXray
from axnet.data.adjudicated import aligned, read_adjudicated
from axnet.data.findings import CHEXPERT_FINDINGS

LABELS = ",".join(CHEXPERT_FINDINGS)


def chexpert(root: Path) -> None:
    (root / "train.csv").write_text(f"Path,{LABELS}\n")


def valid(root: Path) -> None:
    (root / "train.csv").write_text(f"Path,{LABELS}\nCheXpert/train/patient1/study1/view1_frontal.jpg{',1' * 14}\n")
    (root / "valid.csv").write_text(f"Path,{LABELS}\n")


def mimic(root: Path) -> None:
    (root / "mimic-cxr-2.0.0-metadata.csv").write_text("dicom_id,subject_id,study_id,ViewPosition\n")


READERS: list[tuple[Callable[[Path], object], Callable[[Path], None], str]] = [
    (CheXpert, chexpert, "train.csv"),
    (CheXpert, valid, "valid.csv"),
    (MIMICCXR, mimic, "mimic-cxr-2.0.0-metadata.csv"),
    (MIMICCXR, mimic, "mimic-cxr-2.0.0-split.csv"),
    (CSVDataset, lambda root: None, "films.csv"),
    (NIHChestXray, lambda root: None, "Data_Entry_2017_v2020.csv"),
]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00garbled\x00\x01", b'path,"Edema\n1,2'], ids=["empty", "binary", "quote"]
)
@pytest.mark.parametrize(("reader", "layout", "name"), READERS, ids=[name for *_, name in READERS])
def test_the_file_is_named(
    tmp_path: Path, reader: Callable[[Path], object], layout: Callable[[Path], None], name: str, content: bytes
) -> None:
    layout(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^table '.*{name}' (cannot be read as CSV \(|lacks column|has no column)"):
        reader(tmp_path)


def test_a_compressed_table_that_is_cut_off(tmp_path: Path) -> None:
    whole = gzip.compress(b"path,Edema\n" + b"".join(b"%d.png,1\n" % number for number in range(5000)))
    (tmp_path / "films.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^table '.*films.csv.gz' cannot be read as CSV \(.*\)\.$"):
        CSVDataset(tmp_path)


def test_a_finding_with_other_values_is_no_column_to_leave_out(tmp_path: Path) -> None:
    """Columns of other names are labels where they hold nothing else; a finding's name says what one is."""
    (tmp_path / "films.csv").write_text("path,age,Pleural Effusion,Mass\na.png,61,2,0\n")
    with pytest.raises(ValueError, match="has Pleural Effusion '2' in row 1, expected 0, 1, -1 or blank"):
        CSVDataset(tmp_path)


def test_labels_of_radiologists_are_read_as_other_tables_are(tmp_path: Path) -> None:
    file = tmp_path / "read.csv"
    file.write_text("Image Index, Mass\na.png, YES\nb.png, NO\n", encoding="utf-8-sig")  # as spreadsheets write it
    table = read_adjudicated(file)
    assert table["Mass"].to_dict() == {"a.png": 1, "b.png": 0}
    assert aligned(table, ["1/b.png", "2/c.png", "2/a.png", "3/c.png"])[[0, 2], 0].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"adjudicated has 'a\.png', as several films of this split are named"):
        aligned(table, ["1/a.png", "2/a.png", "b.png"])
    file.write_text("path,pleural effusion,Airspace opacity,reader\na.png,True,1.0,Ann\nb.png,,0\n")
    table = read_adjudicated(file)
    assert list(table.columns) == ["Effusion", "Airspace opacity"]  # the name of the classifier, and Google's own
    assert table["Effusion"].fillna(-1).tolist() == [1, -1]
    file.write_text("path,Mass,Edema\na.png,YES,NO\nb.png,unsure,NO\n")
    with pytest.raises(ValueError, match="has Mass 'unsure' in row 2, expected YES, NO, 1, 0 or nothing"):
        read_adjudicated(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^table '.*read.csv' cannot be read as CSV"):
        read_adjudicated(file)
