"""Packed films: runs of masks, shards, and the reader."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from axnet.data import NIHChestXray, PackedFilms
from axnet.data.packed import runs
from axnet.data.packed.manifest import Place
from axnet.data.packed.shards import Film, Shards, writing
from axnet.train import DataConfig
from axnet.train.packers import Packer
from axnet.train.packing import prepare

SHAPES = [(1, 1), (7, 5), (32, 32), (3, 200)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_runs_give_the_mask_back(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    found = runs.decode(runs.encode(mask), *shape)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, mask)


def test_runs_outside_of_the_frame() -> None:
    with pytest.raises(ValueError, match="reach beyond the 4 x 5 pixels"):
        runs.decode(runs.encode(np.ones((5, 5), bool)), 4, 5)


def films(count: int = 5, dtype: str = "u1") -> list[Film]:
    rng = np.random.default_rng(1)
    top = np.iinfo(dtype).max
    return [
        Film(
            f"{number}.png",
            rng.integers(0, top, (8 + number, 9), dtype=dtype, endpoint=True),
            rng.random((3, 8 + number, 9)) < 0.4 if number % 2 else None,
        )
        for number in range(count)
    ]


def same(one: Film, other: Film) -> bool:
    masks = (one.masks is None and other.masks is None) or np.array_equal(one.masks, other.masks)
    return one.image == other.image and np.array_equal(one.pixels, other.pixels) and bool(masks)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_shard_gives_back_what_was_written(tmp_path: Path, dtype: str) -> None:
    written = films(dtype=dtype)
    with writing(tmp_path / "a.arrow") as add:
        for film in written:
            add(film)
    shards = Shards(tmp_path.joinpath, ["a.arrow"])
    for shards_here in (shards, pickle.loads(pickle.dumps(shards))):
        for row in (3, 0, 4, 1, 2):
            assert same(shards_here.read(0, row), written[row])
    assert shards.read(0, 1, masks=False).masks is None
    assert [shards.content(0, row, f"{row}.png", 8) is None for row in (0, 1)] == [True, True]  # neither is 8 x 8
    # a process that was forked has files of its own
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert same(pool.apply(shards.read, (0, 2)), written[2])


def test_every_damaged_byte_of_a_shard_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Nothing but what was written is ever read, and nothing but ValueError is raised."""
    written = films(3)
    path = tmp_path / "a.arrow"
    with writing(path) as add:
        for film in written:
            add(film)
    whole = path.read_bytes()
    said: list[str] = []
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        shards = Shards(tmp_path.joinpath, ["a.arrow"])
        for row, film in enumerate(written):
            try:
                found = shards.read(0, row)
            except ValueError as error:
                said.append(str(error))
            else:
                assert np.array_equal(found.pixels, film.pixels)
    assert len(said) > len(whole) / 7 / 3
    assert all(sentence.startswith("shard 'a.arrow' is damaged") and "\n" not in sentence for sentence in said)
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"shard 'a\.arrow' is damaged"):
            Shards(tmp_path.joinpath, ["a.arrow"]).read(0, 0)


def test_content_is_what_read_gives_or_nothing(tmp_path: Path) -> None:
    """Of 8-bit films of one size, whatever byte is damaged."""
    rng = np.random.default_rng(2)
    written = [Film(name, rng.integers(0, 255, (6, 6), np.uint8), rng.random((3, 6, 6)) < 0.4) for name in "ab"]
    path = tmp_path / "a.arrow"
    with writing(path) as add:
        for film in written:
            add(film)
    shards = Shards(tmp_path.joinpath, ["a.arrow"])
    for row, film in enumerate(written):
        assert film.masks is not None
        found = shards.content(0, row, film.image, 6)
        assert found is not None
        assert bytes(found[0]) == film.pixels.tobytes()
        for data, mask in zip(found[1:], film.masks, strict=True):
            np.testing.assert_array_equal(runs.decode(data, 6, 6, np.uint8(255)), np.uint8(255) * mask)
        assert shards.content(0, row, film.image, 7) is None
        assert shards.content(0, row, "ab".replace(film.image, ""), 6) is None
    assert shards.content(0, 2, "c", 6) is None
    whole, lost = path.read_bytes(), 0
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        damaged = Shards(tmp_path.joinpath, ["a.arrow"])
        for row, film in enumerate(written):
            found = damaged.content(0, row, film.image, 6)
            lost += found is None
            assert found is None or bytes(found[0]) == film.pixels.tobytes()
    assert lost > len(whole) / 5 / 3


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    data = DataConfig(data="phantom", train_images=40, test_images=10, workers=0)
    prepare(data, out, Packer(32, own_masks=True), masks="the set's own")
    return out


def test_the_reader(packed: Path) -> None:
    data = PackedFilms(packed, "test")
    assert len(data) == 10
    assert data.split_hash == data.manifest.splits["test"]["hash"]
    item = data[3]
    assert (item["image"].shape, item["mask"].shape) == ((1, 32, 32), (3, 32, 32))
    assert item["id"] == data.ids[3]
    assert len(PackedFilms(packed)) == 50
    only = packed.parent / "own.txt"
    only.write_text("\n".join(data.ids[2:4]))
    assert PackedFilms(packed, str(only)).ids == data.ids[2:4]
    chosen = PackedFilms(packed, "test", findings=data.findings[:2], size=16)
    assert chosen[0]["image"].shape == (1, 16, 16)
    np.testing.assert_array_equal(chosen.labels, data.labels[:, :2])


def test_the_readers_errors(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        PackedFilms(tmp_path)
    with pytest.raises(ValueError, match=r"split is 'valid', expected one of \('train', 'test', 'all'\)"):
        PackedFilms(packed, "valid")
    with pytest.raises(FileNotFoundError, match=r"holds no Data_Entry.* it looks like packed films"):
        NIHChestXray(packed)
    for text in ("", "{}", "[1]", json.dumps({"format": "axnet-packed-2"})):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json' is damaged or none of axnet prepare"):
            PackedFilms(tmp_path)


def test_labels_of_another_content_are_refused(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    table = pd.read_parquet(copy / "films.parquet")
    table["patient"] = table["patient"].iloc[::-1].to_numpy()
    table.to_parquet(copy / "films.parquet")
    with pytest.raises(ValueError, match=r"films\.parquet' is damaged .*its content is not what was written"):
        PackedFilms(copy)


def test_a_url_is_fetched_once(packed: Path, tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for file in packed.iterdir():
        files.pipe_file(f"/bucket/packed/{file.name}", file.read_bytes())
    cache = tmp_path / "cache"
    data = PackedFilms("memory://bucket/packed", "test", cache=str(cache))
    local = PackedFilms(packed, "test")
    assert data.ids == local.ids
    assert same(data.film(4), local.film(4))
    fetched = sorted(cache.rglob("*.arrow"))
    assert len(fetched) == 1
    files.rm("/bucket/packed", recursive=True)
    assert same(data.film(5), local.film(5))
    assert not Place("memory://bucket/packed").exists()


def test_what_was_fetched_is_what_was_written(packed: Path, tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for file in packed.iterdir():
        content = file.read_bytes()
        files.pipe_file(f"/bad/{file.name}", content[:-1] if file.suffix == ".arrow" else content)
    data = PackedFilms("memory://bad", "test", cache=str(tmp_path))
    with pytest.raises(ValueError, match="is not what was written"):
        data.film(0)
