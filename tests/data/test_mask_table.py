from __future__ import annotations

import csv
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from axnet.data import MaskTable, MaskWriter, rle
from axnet.data.mask_table import ROWS_PER_GROUP, to_row


def masks(seed):
    return np.random.default_rng(seed).random((3, 12, 10)) > 0.6


def fill(writer, seeds):
    for seed in seeds:
        writer.add(to_row(f"{seed:05d}.png", masks(seed), 0.5, 0.9, ["one", "two"]))


def test_a_table_gives_back_what_was_written(tmp_path):
    writer = MaskWriter(tmp_path / "m.parquet")
    fill(writer, range(2 * ROWS_PER_GROUP + 3))
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]
    table = MaskTable(tmp_path / "m.parquet")
    assert len(table) == 2 * ROWS_PER_GROUP + 3
    for seed in (0, ROWS_PER_GROUP - 1, ROWS_PER_GROUP, 2 * ROWS_PER_GROUP + 2, 5):
        np.testing.assert_array_equal(table.masks(f"{seed:05d}.png"), masks(seed))
    np.testing.assert_allclose(
        table.coverage("00007.png", (3, 2)), masks(7).reshape(3, 3, 4, 2, 5).mean((2, 4)), atol=1e-6
    )
    assert table.row("00001.png")["quality"] == pytest.approx(0.9)
    assert "00001.png" in table
    with pytest.raises(KeyError, match=r"has no image 'x.png'"):
        table.row("x.png")


def test_a_killed_run_loses_nothing_that_was_flushed(tmp_path):
    path = tmp_path / "m.parquet"
    first = MaskWriter(path)
    fill(first, range(5))
    first.flush()
    fill(first, range(5, 7))  # never flushed
    (tmp_path / "m.parquet.parts" / ".000002.part").write_bytes(b"half a file")
    second = MaskWriter(path)
    assert second.ids == {f"{seed:05d}.png" for seed in range(5)}
    fill(second, range(5, 9))
    second.finish()
    third = MaskWriter(path)
    fill(third, range(9, 11))
    third.finish()
    assert MaskTable(path).ids == [f"{seed:05d}.png" for seed in range(11)]


def test_small_parts_become_whole_groups(tmp_path):
    writer, count = MaskWriter(tmp_path / "m.parquet"), 2 * ROWS_PER_GROUP + 5
    for start in range(0, count, 9):
        fill(writer, range(start, min(start + 9, count)))
        writer.flush()
    writer.finish()
    found = pq.ParquetFile(tmp_path / "m.parquet").metadata
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == [ROWS_PER_GROUP, ROWS_PER_GROUP, 5]
    assert MaskTable(tmp_path / "m.parquet").ids == [f"{seed:05d}.png" for seed in range(count)]


def test_parts_that_outlived_their_merge_are_not_taken_twice(tmp_path):
    path = tmp_path / "m.parquet"
    writer = MaskWriter(path)
    fill(writer, range(3))
    writer.flush()
    kept = (writer.folder / "000001.parquet").read_bytes()
    writer.finish()
    (tmp_path / "m.parquet.parts").mkdir()
    (tmp_path / "m.parquet.parts" / "000001.parquet").write_bytes(kept)
    MaskWriter(path).finish()
    assert len(MaskTable(path)) == 3


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
