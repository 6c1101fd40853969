"""Processes that share files: a cache, a mask table, data sets in workers of any start method."""

from __future__ import annotations

import hashlib
import multiprocessing
import os

import numpy as np
import pytest
from faults.processes import at_once, run

from axnet.data import MaskTable, MaskWriter, write_nih
from axnet.data.mask_table import to_row
from axnet.models import Preprocessing
from axnet.train import DataConfig, open_part

pytestmark = pytest.mark.slow


def test_two_runs_on_one_cache(tmp_path):
    # two of the same preprocessing, of which one draws and the other waits, and one of another
    calls = [("cached", tmp_path, size, 150) for size in (32, 32, 40)]
    printed = at_once(*calls)
    for size, words in zip((32, 32, 40), printed, strict=True):
        data = open_part(DataConfig(train_images=150, workers=0), "train", Preprocessing(size=size))
        digest = hashlib.sha256(data.images.numpy().tobytes())
        digest.update(data.masks.numpy().tobytes())
        assert words.strip() == digest.hexdigest()
    assert len(os.listdir(tmp_path)) == 4  # images and masks of each size
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    at_once(calls[0])
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_two_runs_on_one_mask_table(tmp_path):
    at_once(*(("table", tmp_path / "m.parquet", start, 60, 3) for start in (0, 40)))
    assert os.listdir(tmp_path) == ["m.parquet"]
    table = MaskTable(tmp_path / "m.parquet")
    assert sorted(table.ids) == [f"{number:05d}.png" for number in range(100)]
    for number in (0, 45, 99):
        expected = np.random.default_rng(number).random((3, 12, 10)) > 0.6
        np.testing.assert_array_equal(table.masks(f"{number:05d}.png"), expected)


@pytest.mark.parametrize("method", [name for name in multiprocessing.get_all_start_methods() if name != "fork"])
def test_workers_of_any_start_method(tmp_path, method):
    root = write_nih(tmp_path / "nih", 40, size=32)
    writer = MaskWriter(tmp_path / "m.parquet")
    for number, path in enumerate(sorted((root / "images").iterdir())):
        writer.add(to_row(path.name, np.random.default_rng(number).random((3, 32, 32)) > 0.6, 0.5, 0.9, []))
    writer.finish()
    done = run("workers", method, root, tmp_path / "m.parquet")
    assert done.returncode == 0, done.stderr[-4000:]
