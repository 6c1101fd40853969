"""SIGKILL in the middle of the work: what was written stays, and the next run goes on from it."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.processes import run
from safetensors.torch import load_file

from axnet.data import ORGANS, MaskTable, write_nih
from axnet.models import AnatomyXNet, Preprocessing
from axnet.models.storage import save_classifier
from axnet.segment import PRESETS, Segmenter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL belongs to POSIX systems"),
]


def killed(*arguments: object) -> None:
    done = run(*arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr[-4000:]


def ended(*arguments: object) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def losses(file: Path) -> dict[int, str]:
    """The loss of every step, the last where a step ran twice."""
    return dict(line.split() for line in file.read_text().splitlines())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Losses of a run that nothing interrupts: 3 epochs."""
    folder = tmp_path_factory.mktemp("whole")
    ended("fit", folder / "out", folder / "losses", 3, "", "")
    return losses(folder / "losses")


@pytest.mark.parametrize("moment", ["step 7", "save 2"])
def test_fit_goes_on_with_the_same_losses(tmp_path, whole, moment):
    out, log = tmp_path / "out", tmp_path / "losses"
    killed("fit", out, log, 3, "", moment)
    before = losses(log)
    assert 0 < len(before) < len(whole)
    assert not (out / "model.safetensors").exists()
    log.unlink()
    ended("fit", out, log, 3, "resume", "")
    after = losses(log)
    assert min(map(int, after)) == len(whole) // 3  # from the end of the first epoch
    assert before | after == whole
    assert (out / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """70 films, a segmenter and a classifier."""
    folder = tmp_path_factory.mktemp("films")
    images = write_nih(folder / "nih", 70, size=32) / "images"
    segmenter = folder / "segmenter.safetensors"
    Segmenter(PRESETS["tiny"]).save(segmenter)
    model = AnatomyXNet(2, backbone="tiny", reduction=0.25)
    save_classifier(folder / "model.safetensors", model, Preprocessing(size=32), ("Mass", "Nodule"), training={})
    return images, segmenter, folder / "model.safetensors"


@pytest.mark.parametrize("out", ["masks.parquet", "masks"])
@pytest.mark.parametrize(("method", "call"), [("flush", 3), ("add", 20)])
def test_segment_predict_goes_on(tmp_path, films, out, method, call):
    images, segmenter, _ = films
    sink = "TableSink" if out.endswith(".parquet") else "PngFolder"
    arguments = ("segment", "predict", images, "--weights", segmenter, "--out", tmp_path / out)
    killed("command", "axnet.segment.output", f"{sink}.{method}", call, *arguments)
    said = ended("command", "os", "getpid", 0, *arguments)
    assert "failed" in said
    drawn, there = int(said.split(" drawn")[0].split()[-1]), int(said.split(" were there")[0].split()[-1])
    assert drawn + there == 70
    assert there == (24 if method == "flush" else 16)  # eight at a time
    names = sorted(path.name for path in images.iterdir())
    if out.endswith(".parquet"):
        assert sorted(MaskTable(tmp_path / out).ids) == names
        assert os.listdir(tmp_path) == [out]
        return
    with (tmp_path / out / "anatomy.csv").open(newline="") as opened:
        assert sorted(row["image"] for row in csv.DictReader(opened)) == names
    for organ in ORGANS:
        assert sorted(os.listdir(tmp_path / out / organ)) == names


def test_predict_leaves_the_table_of_before_or_the_whole_new_one(tmp_path, films):
    images, segmenter, weights = films
    out = tmp_path / "scores.csv"
    arguments = ("predict", images, "--weights", weights, "--segmenter", segmenter, "--out", out)
    killed("command", "axnet.train", "predict", 1, *arguments)
    assert not out.exists()
    ended("command", "os", "getpid", 0, *arguments)
    whole = out.read_bytes()
    killed("command", "axnet.train", "predict", 1, *arguments)
    assert out.read_bytes() == whole
    with out.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 70
    assert np.isfinite([float(row["Mass"]) for row in rows]).all()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """70 films, the command that packs them in five shards, and what it leaves when nothing interrupts it."""
    folder = tmp_path_factory.mktemp("packed")
    root = write_nih(folder / "nih", 70, size=32)
    arguments = (
        "prepare",
        "--data",
        "nih",
        "--root",
        root,
        "--size",
        24,
        "--masks",
        "none",
        "--split",
        "all",
        "--quiet",
    )
    ended("command", "os", "getpid", 0, *arguments, "--workers", 0, "--out", folder / "out")
    return arguments, contents(folder / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("workers", "where", "call"),
    [
        (0, "axnet.train.packers _Worker.film", 5),
        (0, "axnet.train.packers _Worker.film", 43),
        (0, "axnet.train.packing Manifest.write", 1),
        (2, "axnet.train.packing asdict", 2),
    ],
)
def test_prepare_goes_on(tmp_path, packed, workers, where, call):
    arguments, whole = packed
    arguments = (*arguments, "--workers", workers, "--out", tmp_path)
    killed("command", *where.split(), call, *arguments)
    before = {path.name: path.stat().st_ino for path in tmp_path.glob("shard-*.arrow")}
    assert "70 films packed" in ended("command", "os", "getpid", 0, *arguments)
    assert contents(tmp_path) == whole
    if workers == 0:  # the shards that were whole are not made again
        assert len(before) == min(5, call // 16) or where.endswith("write")
        assert before.items() <= {path.name: path.stat().st_ino for path in tmp_path.glob("*.arrow")}.items()


def test_prepare_says_that_a_process_of_it_was_killed(tmp_path, packed):
    arguments, whole = packed
    arguments = (*arguments, "--workers", 2, "--out", tmp_path)
    done = run("command", "axnet.train.packers", "_Worker.film", 20, *arguments)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("axnet: a process that packs films was killed")
    ended("command", "os", "getpid", 0, *arguments)
    assert contents(tmp_path) == whole


def codes(*calls: tuple[object, ...]) -> list[int]:
    """Exit codes of calls, each in a process forked from one that has imported all."""
    said = ended("forked", json.dumps([[str(part) for part in call] for call in calls]))
    return [int(line.split()[1]) for line in said.splitlines() if line.startswith("code ")]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """40 packed phantoms to train on, with their masks, and 150 more to score; a run on them and its losses."""
    root = tmp_path_factory.mktemp("phantoms") / "packed"
    whole = root.with_name("whole")
    films = ("--train-images", 40, "--test-images", 150, "--size", 32)
    pack = ("command", "os", "getpid", 0, "prepare", *films, "--workers", 0, "--quiet", "--out", root)
    assert codes(pack, ("fit", whole, root.with_name("log"), 3, "", "", root)) == [0, 0]
    return root, load_file(whole / "model.safetensors"), losses(root.with_name("log"))


def test_fit_on_packed_films_goes_on_from_any_moment(tmp_path, phantoms):
    root, expected, whole = phantoms
    # after the first epoch there is something to resume
    moments = random.sample(range(len(whole) // 3 + 1, len(whole) + 1), 3)
    calls = []
    for moment in moments:
        out, log = tmp_path / f"{moment}", tmp_path / f"{moment}.log"
        calls.append(("fit", out, log, 3, "", f"step {moment}", root))
        calls.append(("fit", out, log, 3, "resume", "", root))
    assert codes(*calls) == 3 * [-signal.SIGKILL, 0]
    for moment in moments:
        assert losses(tmp_path / f"{moment}.log") == whole, moment
        found = load_file(tmp_path / f"{moment}" / "model.safetensors")
        assert all(torch.equal(found[name], value) for name, value in expected.items()), moment


def test_predict_on_packed_films_at_any_moment(tmp_path, films, phantoms):
    """A file that is there is whole: 190 films in three parts, or nothing yet."""
    _, _, weights = films
    moments = random.sample(range(1, 190), 3)
    arguments = ("predict", phantoms[0], "--weights", weights, "--out")
    calls = [("command", "os", "getpid", 0, *arguments, tmp_path / "whole.csv")]
    for moment in moments:
        where = ("axnet.train.pixels", "_Packed._copied")
        calls.append(("command", *where, moment, *arguments, tmp_path / f"{moment}.csv"))
    assert codes(*calls) == [0] + 3 * [-signal.SIGKILL]
    assert not any((tmp_path / f"{moment}.csv").exists() for moment in moments)
    again = [("command", "os", "getpid", 0, *arguments, tmp_path / f"{moment}.csv") for moment in moments]
    assert codes(*again) == [0, 0, 0]
    whole = (tmp_path / "whole.csv").read_bytes()
    rows = whole.decode().splitlines()
    assert len({row.split(",")[0] for row in rows[1:]}) == len(rows) - 1 == 190
    assert all((tmp_path / f"{moment}.csv").read_bytes() == whole for moment in moments)
