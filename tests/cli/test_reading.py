"""`axnet predict` with a calibrated classifier: table, text, overlays."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from axnet.cli import app
from axnet.data import PhantomXray
from axnet.models import AnatomyXNet, Calibration, Preprocessing, save_classifier

FINDINGS = ("Effusion", "Mass")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("calibrated") / "model.safetensors"
    always = Calibration(1.0, (0.0, None), (1.0, None), (0.0, None), (1000.0, None), "all", "two films")
    model = AnatomyXNet(2, backbone="tiny", reduction=0.25, num_maps="classes")
    save_classifier(path, model, Preprocessing(size=48), FINDINGS, calibration=always)
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for index in range(2):
        image = PhantomXray(2, seed=3, size=128)[index]["image"][0].numpy()
        (folder / f"p{index}").mkdir()
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(folder / f"p{index}" / "film.png")
    return folder


def test_table_and_overlays(weights: Path, films: Path, tmp_path: Path) -> None:
    (films / "cut.png").write_bytes(b"\x89PNG")
    try:
        text = run(
            "predict", films, "--weights", weights, "--out", tmp_path / "p.csv", "--overlays", tmp_path / "o", code=1
        )
    finally:
        (films / "cut.png").unlink()
    assert "2 images scored, 1 failed" in text
    assert "expected positives of 1,000 films like two films: Effusion 1000" in text
    with (tmp_path / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == ["p0/film.png", "p1/film.png"]
    for row in rows:
        assert 0 < float(row["Effusion"]) < 1
        assert row["Effusion call"] == ("" if row["flags"] else "1")
        assert row["Mass call"] == ""
        assert row["CTR"] == "" or 0.2 < float(row["CTR"]) < 0.9
    pictures = sorted(path.relative_to(tmp_path / "o").as_posix() for path in (tmp_path / "o").rglob("*.png"))
    assert pictures == ["p0/film.png.png", "p1/film.png.png"]
    with Image.open(tmp_path / "o" / "p0" / "film.png.png") as picture:
        assert picture.size == (768, 768)
        assert np.ptp(np.asarray(picture).astype(int), axis=2).max() > 50  # coloured


def test_overlays_stay_in_their_folder(
    weights: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(films.rglob("*"))
    monkeypatch.chdir(films / "p0")
    run("predict", films / "p0" / "film.png", "--weights", weights, "--overlays", tmp_path / "a")
    run("predict", "../p1/film.png", "--weights", weights, "--overlays", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["film.png.png"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["film.png.png"]
    assert sorted(films.rglob("*")) == before
    both = (films / "p0" / "film.png", films / "p1" / "film.png")
    with pytest.raises(ValueError, match=r"two files named 'film\.png', expected different names with --overlays"):
        run("predict", *both, "--weights", weights, "--overlays", tmp_path / "c")


def test_text_on_the_terminal(weights: Path, films: Path) -> None:
    text = run("predict", films, "--weights", weights)
    assert text.startswith("p0/film.png  CTR ")
    assert text.count("%") == 4
    assert "positive (0.000)" in text or "no call is made" in text
    assert text.count("finding   probability  call (operating point)") == 2


def test_packed_films_get_the_same_calls(weights: Path, films: Path, tmp_path: Path) -> None:
    """Packed as they are, films give what their files give; a damaged one does not take the others with it."""
    table = films / "table.csv"
    table.write_text("path,Effusion,Mass\np0/film.png,1,0\np1/film.png,0,1\n")
    packed = tmp_path / "packed"
    try:
        run("prepare", "--data", "csv", "--root", table, "--split", "all", "--keep", "--masks", "none", "--out", packed)
    finally:
        table.unlink()
    for name, named in (("files", films), ("packed", packed)):
        run("predict", named, "--weights", weights, "--out", tmp_path / f"{name}.csv", "--overlays", tmp_path / name)
    assert (tmp_path / "packed.csv").read_text() == (tmp_path / "files.csv").read_text()
    with (tmp_path / "packed.csv").open() as stream:
        assert {row["Effusion call"] for row in csv.DictReader(stream)} <= {"1", ""}
    pictures = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.png"))
        for name in ("files", "packed")
    ]
    assert pictures[0] == pictures[1] != []
    (shard,) = packed.glob("*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 255
    shard.write_bytes(content)
    text = run("predict", packed, "--weights", weights, "--out", tmp_path / "again.csv", code=1)
    assert "1 images scored, 1 failed" in text
    (good,) = (tmp_path / "again.csv").read_text().splitlines()[1:]
    assert good in (tmp_path / "files.csv").read_text()
