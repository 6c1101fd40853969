from __future__ import annotations

import multiprocessing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from axnet.data import MaskTable, MaskWriter
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


def test_two_runs_on_one_path_lose_and_repeat_nothing(tmp_path):
    path = tmp_path / "m.parquet"
    one, two = MaskWriter(path), MaskWriter(path)
    fill(one, range(3))
    one.flush()
    fill(two, range(2, 5))  # 2 was drawn by both
    two.flush()
    fill(one, [7])
    one.finish()
    assert sorted(MaskTable(path).ids) == [f"{seed:05d}.png" for seed in (0, 1, 2, 3, 4, 7)]
    fill(two, [8])
    two.finish()
    assert sorted(MaskTable(path).ids) == [f"{seed:05d}.png" for seed in (0, 1, 2, 3, 4, 7, 8)]
    assert [found.name for found in tmp_path.iterdir()] == ["m.parquet"]
    np.testing.assert_array_equal(MaskTable(path).masks("00008.png"), masks(8))


def write_some(path, start):
    writer = MaskWriter(path)
    for seed in range(start, start + 40):
        fill(writer, [seed])
        if seed % 4 == 0:
            writer.flush()
        if seed % 10 == 0:
            writer.finish()
    writer.finish()


def test_processes_that_write_and_merge_at_the_same_time(tmp_path):
    path, context = tmp_path / "m.parquet", multiprocessing.get_context("fork")
    runs = [context.Process(target=write_some, args=(path, start)) for start in (0, 30, 60)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert sorted(MaskTable(path).ids) == [f"{seed:05d}.png" for seed in range(100)]
    assert [found.name for found in tmp_path.iterdir()] == ["m.parquet"]


def test_a_foreign_table_is_left_alone(tmp_path):
    pq.write_table(pa.table({"image": ["a"], "age": [3]}), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"has columns \['image', 'age'\], expected"):
        MaskWriter(tmp_path / "m.parquet")
    assert pq.read_table(tmp_path / "m.parquet").num_columns == 2
