from __future__ import annotations

import bz2
import csv
import gc
import gzip
import lzma
import math
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from axnet.data import MaskTable, NIHChestXray, rle
from axnet.data.mask_table import ROWS_PER_GROUP


def masks(seed):
    return np.random.default_rng(seed).random((3, 12, 10)) > 0.6


@pytest.fixture
def chexmask(tmp_path):
    """A table as CheXmask publishes NIH's."""
    path = tmp_path / "ChestX-Ray8.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "",
                "Image Index",
                "Dice RCA (Max)",
                "Dice RCA (Mean)",
                "Landmarks",
                "Left Lung",
                "Right Lung",
                "Heart",
                "Height",
                "Width",
            ]
        )
        for seed in range(4):
            texts = [rle.encode(mask) for mask in masks(seed)]
            writer.writerow([seed, f"{seed:05d}.png", 0.9, 0.8 if seed else "", "[1, 2, 3]", *texts, 12, 10])
    return path


def test_chexmask_tables_are_read_as_they_are(chexmask):
    table = MaskTable(chexmask)
    assert table.ids == [f"{seed:05d}.png" for seed in range(4)]
    for seed in (3, 0):
        np.testing.assert_array_equal(table(f"{seed:05d}.png"), masks(seed))
    assert table.row("00001.png")["quality"] == 0.8
    assert math.isnan(table.row("00000.png")["quality"])


def test_tables_that_cannot_serve_are_named(tmp_path, chexmask):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        MaskTable(tmp_path / "none.csv")
    text = chexmask.read_text()
    chexmask.write_text(text.replace("Heart", "Herz"))
    with pytest.raises(ValueError, match="lacks a column 'heart' or 'Heart'"):
        MaskTable(chexmask)
    chexmask.write_text(text + text.splitlines()[-1] + "\n")
    with pytest.raises(ValueError, match=r"has the image '00003.png' twice"):
        MaskTable(chexmask)
    broken = tmp_path / "m.parquet"
    broken.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="is damaged or no Parquet file"):
        MaskTable(broken)


# ---- CheXmask's own tables, as they come

ORGAN_CELLS = ["4 2", "1 1", "7 2"]
COUNTS = [2, 1, 2]  # pixels of the organs above, of 3 x 4
HEADER = [
    "Image Index",
    "Dice RCA (Mean)",
    "Dice RCA (Max)",
    "Landmarks",
    "Left Lung",
    "Right Lung",
    "Heart",
    "Height",
    "Width",
]


def row(name, landmarks="[1 2]", organs=ORGAN_CELLS, height="3", width="4"):
    return [name, "0.9", "0.95", landmarks, *organs, height, width]


def table(path, rows, header=HEADER, **options):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return path


def counts(masks_of):
    return masks_of.sum((1, 2)).tolist()


MANY_LINES = "[[ 3 10]\n [ 4 12]\n [11  9]]"


def test_landmarks_may_go_over_many_lines(tmp_path):
    found = MaskTable(table(tmp_path / "vindr.csv", [row(name, MANY_LINES) for name in "abc"]))
    assert found.ids == ["a", "b", "c"]
    assert [counts(found.masks(name)) for name in "cab"] == [COUNTS] * 3


def test_quotes_and_commas_within_a_value(tmp_path):
    found = MaskTable(table(tmp_path / "t.csv", [row("a, b", 'say "x",\n\n"y"'), row('c"d')]))
    assert found.ids == ["a, b", 'c"d']
    assert counts(found.masks('c"d')) == COUNTS


def packed(path, kind):
    raw = path.read_bytes()
    target = path.with_name(f"{path.name}.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("folder/nih.csv", raw)
            archive.writestr("__MACOSX/folder/._nih.csv", b"\0\5\x16\7")
    elif kind == "zst":
        with pa.CompressedOutputStream(str(target), "zstd") as stream:
            stream.write(raw)
    else:
        target.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[kind].compress(raw))
    return target


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst", "zip"])
def test_a_compressed_table_is_the_same_table(tmp_path, monkeypatch, kind):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    whole = table(tmp_path / "nih.csv", [row(f"{k}", MANY_LINES) for k in range(ROWS_PER_GROUP + 2)])
    found, expected = MaskTable(packed(whole, kind)), MaskTable(whole)
    assert found.ids == expected.ids
    for name in ("0", str(ROWS_PER_GROUP + 1)):
        np.testing.assert_array_equal(found.masks(name), expected.masks(name))
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    copy = pickle.loads(pickle.dumps(found))
    del found
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir())
    assert counts(copy.masks("5")) == COUNTS  # unpacked again
    # the name does not matter
    renamed = packed(whole, kind).rename(tmp_path / "other.csv")
    assert len(MaskTable(renamed)) == ROWS_PER_GROUP + 2


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
def test_a_compressed_table_that_is_cut_off(tmp_path, kind):
    path = packed(table(tmp_path / "nih.csv", [row(f"{k}", str(k) * 99) for k in range(300)]), kind)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"nih.csv.{kind}' is cut off or damaged"):
        MaskTable(path)


def test_a_zip_of_two_tables_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.csv", "")
        archive.writestr("b.csv", "")
    with pytest.raises(ValueError, match="zip file of 2 files, expected one CSV file"):
        MaskTable(tmp_path / "t.zip")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_marks_of_other_programs(tmp_path, delimiter, ending):
    """A byte order mark, blank lines anywhere, an index column with and without a name, other delimiters."""
    path = table(tmp_path / "t.csv", [row("a"), row("b")], delimiter=delimiter, lineterminator=ending)
    lines = path.read_text().splitlines()
    for index in ("", "Unnamed: 0", None):
        head = lines[0] if index is None else f"{index}{delimiter}{lines[0]}"
        text = ["", head, "", f"0{delimiter}{lines[1]}", " ", delimiter * 9, f"1{delimiter}{lines[2]}", "", ""]
        path.write_bytes(("\ufeff" + ending.join(text[1:])).encode())
        found = MaskTable(path)
        assert found.ids == ["a", "b"]
        assert counts(found.masks("b")) == COUNTS
    path.write_text("\n".join(f"{line}{delimiter if k else ''}" for k, line in enumerate(lines)))
    assert MaskTable(path).ids == ["a", "b"]


@pytest.mark.parametrize("cut", [1, 4, 12, 30, -8, -3])
def test_half_a_row_is_named(tmp_path, cut):
    path = table(tmp_path / "cut.csv", [row("a.png"), row("b.png", MANY_LINES)])
    text = path.read_text()
    begin = text.index("b.png")
    path.write_text(text[: begin + cut] if cut > 0 else text.rstrip()[:cut])
    with pytest.raises(ValueError, match=r"mask table '.*cut.csv': row 2 (has|cannot be read)"):
        MaskTable(path)


def test_half_a_row_in_the_middle_is_named(tmp_path):
    path = table(tmp_path / "t.csv", [row("a"), row("b")[:5], row("c")])
    with pytest.raises(ValueError, match="row 2 has 5 values, expected 9"):
        MaskTable(path)
    table(path, [row("a"), row(""), row("c")])
    with pytest.raises(ValueError, match="row 2 has no image name"):
        MaskTable(path)
    path.write_bytes(b"Image Index,Left Lung,Right Lung,Heart,Height,Width\nM\xfcller,1 1,1 1,1 1,3,4\n")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        MaskTable(path)


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "None", None])
def test_an_organ_without_text_is_empty(tmp_path, missing):
    found = MaskTable(table(tmp_path / "t.csv", [row("a", organs=["5 1", "2 1", missing], height="3.0")]))
    assert counts(found.masks("a")) == [1, 1, 0]
    assert found.coverage("a", (1, 1)).shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"height": ""}, "has height nan for 'a', expected 1 to 65535 pixels"),
        ({"height": "3000000", "width": "4000000"}, "has height 3e\\+06 for 'a', expected 1 to 65535 pixels"),
        ({"height": "inf"}, "has height inf for 'a', expected 1 to 65535 pixels"),
        ({"organs": ["99999999999999999999 2", "", ""]}, "left_lung of 'a': mask text begins '9{20}"),
        ({"height": "tall"}, "has height 'tall' for 'a', expected a number"),
        ({"width": "0"}, "has width 0 for 'a', expected 1 to 65535 pixels"),
        ({"width": "3.5"}, "has width 3.5 for 'a', expected 1 to 65535 pixels"),
        ({"organs": ["1 99", "", ""]}, r"t.csv', left_lung of 'a': mask text has runs outside of its 3 x 4"),
        ({"organs": ["", "", "1 2 3"]}, "heart of 'a': mask text has 3 numbers"),
        ({"organs": ["", "x y", ""]}, "right_lung of 'a': mask text begins 'x y'"),
    ],
)
def test_a_row_that_cannot_serve_is_named(tmp_path, cells, words):
    found = MaskTable(table(tmp_path / "t.csv", [row("a", **cells)]))
    with pytest.raises(ValueError, match=words):
        found.masks("a")


def test_columns_of_one_name_are_refused(tmp_path):
    path = table(tmp_path / "t.csv", [[*row("a"), "1 3"]], header=[*HEADER, "Heart"])
    with pytest.raises(ValueError, match=r"t\.csv' has 2 columns 'Heart', expected one"):
        MaskTable(path)
    table(path, [[*row("a"), "b"]], header=[*HEADER, "Image Index"])
    with pytest.raises(ValueError, match=r"t\.csv' has 2 columns 'Image Index', expected one"):
        MaskTable(path)
    whole = pa.table(
        {"image": ["a"], "Left Lung": [""], "Right Lung": [""], "Heart": [""], "Height": [3], "Width": [4]}
    )
    pq.write_table(whole.append_column("Heart", whole.column("Heart")), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet' has 2 columns 'Heart', expected one"):
        MaskTable(tmp_path / "t.parquet")


def test_a_first_line_that_says_nothing(tmp_path):
    path = tmp_path / "t.csv"
    for text, words in {
        "": "has nothing in its first line",
        "\nImage Index,Heart\n": "has nothing in its first line",
        "Image Index,Heart\ra,1 1\r": "has a first line that cannot be read",
    }.items():
        path.write_bytes(text.encode())
        with pytest.raises(ValueError, match=rf"mask table '.*t\.csv' {words}"):
            MaskTable(path)
    path.write_text(",".join(HEADER), encoding="utf-16")
    with pytest.raises(ValueError, match=r"t\.csv' is not text in UTF-8"):
        MaskTable(path)


def test_blanks_around_values(tmp_path):
    path = table(tmp_path / "t.csv", [row("a ", "[1, 2]"), row(" b")])
    path.write_text(path.read_text().replace(",", ", ").replace("[1,  2]", "[1, 2]"))
    found = MaskTable(path)
    assert found.ids == ["a", "b"]
    assert [counts(found.masks(name)) for name in "ab"] == [COUNTS] * 2
    with pytest.raises(ValueError, match="has the image 'a' twice"):
        MaskTable(table(path, [row("a "), row("a")]))


def test_a_comma_too_many_is_no_row_number(tmp_path):
    """Landmarks without quotes: every value after them would stand a column further, and the name with them."""
    path = table(tmp_path / "t.csv", [row("a"), row("b")])
    path.write_text(path.read_text().replace("[1 2]", "[1, 2]"))
    with pytest.raises(ValueError, match="row 1 has 10 values, expected 9"):
        MaskTable(path)


FRAME = {
    "Image Index": ["a", "b", "c"],
    "Left Lung": ["4 2", "5 1", "4 2"],
    "Right Lung": ["1 1", "2 1", "1 1"],
    "Heart": ["7 2", None, float("nan")],
    "Height": [3.0, 3.0, 3.0],
    "Width": [4.0, 4.0, 4.0],
    "Dice RCA (Mean)": [0.5, None, 0.7],
}


def as_floats(frame):
    return pa.Table.from_pandas(frame)


def as_dictionaries(frame):
    whole = pa.Table.from_pandas(frame, preserve_index=False)
    kinds = {"Image Index": pa.string(), "Heart": pa.large_string(), "Left Lung": pa.string_view()}
    for name, kind in kinds.items():
        column = whole.column(name).cast(pa.string())
        column = column.cast(kind) if name == "Left Lung" else column.cast(kind).dictionary_encode()
        whole = whole.set_column(whole.schema.get_field_index(name), name, column)
    return whole


def as_bytes(frame):
    whole = pa.Table.from_pandas(frame.astype({"Height": "int16", "Width": "uint8"}), preserve_index=False)
    return whole.set_column(0, "Image Index", whole.column(0).cast(pa.binary()))


def as_text(frame):
    return pa.Table.from_pandas(frame.astype({"Height": str, "Width": str}), preserve_index=False)


@pytest.mark.parametrize("write", [as_floats, as_dictionaries, as_bytes, as_text])
@pytest.mark.parametrize("index", [False, True])
def test_parquet_of_pandas_gives_what_the_same_rows_give_in_csv(tmp_path, write, index):
    import pandas as pd

    frame = pd.DataFrame(FRAME)
    frame.to_csv(tmp_path / "t.csv")
    expected = MaskTable(tmp_path / "t.csv")
    if index and write is as_floats:
        frame = frame.set_index("Image Index")
    pq.write_table(write(frame), tmp_path / "t.parquet")
    found = MaskTable(tmp_path / "t.parquet")
    assert found.ids == expected.ids == ["a", "b", "c"]
    for name in "cba":
        np.testing.assert_array_equal(found.masks(name), expected.masks(name))
        np.testing.assert_equal(found.row(name), expected.row(name))
    assert counts(found.masks("b")) == [1, 1, 0]
    assert math.isnan(found.row("b")["quality"])


def test_parquet_without_a_name_in_a_row(tmp_path):
    pq.write_table(
        pa.table({**{k: v[:2] for k, v in FRAME.items()}, "Image Index": ["a", None]}), tmp_path / "t.parquet"
    )
    with pytest.raises(ValueError, match="row 2 has no image name"):
        MaskTable(tmp_path / "t.parquet")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_tables_serve_in_worker_processes(tmp_path, nih_root, method):
    import pandas as pd

    names = NIHChestXray(nih_root, "all").ids
    path = table(tmp_path / "t.csv", [row(name, MANY_LINES) for name in names])
    pd.read_csv(path).to_parquet(tmp_path / "t.parquet")
    for kind in (path, packed(path, "gz"), tmp_path / "t.parquet"):
        found = MaskTable(kind)
        assert counts(found.masks(names[0])) == COUNTS  # the file is open in the parent
        data = NIHChestXray(nih_root, "all", size=32, masks=found)
        expected = torch.stack([data[k]["mask"] for k in range(len(data))])
        loader = DataLoader(data, batch_size=8, num_workers=1, multiprocessing_context=method)
        assert torch.equal(torch.cat([batch["mask"] for batch in loader]), expected)
        assert counts(found.masks(names[-1])) == COUNTS
