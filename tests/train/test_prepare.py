"""axnet prepare: what is packed is what the readers give; it goes on where it was cut off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from axnet.cli import app, main
from axnet.data import Box, Joined, MaskWriter, NIHChestXray, PackedFilms, PhantomXray, organs_to_anatomies, write_nih
from axnet.data.mask_table import to_row
from axnet.data.packed.manifest import FILMS, MANIFEST, sha256
from axnet.imaging import percentile_normalize
from axnet.models import Preprocessing
from axnet.train import DataConfig, Facts, collect, measured, open_part
from axnet.train.data import Batches
from axnet.train.packers import Packer
from axnet.train.packing import Prepared, pack_options, prepare


@pytest.fixture(scope="module")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 films in three shards."""
    return write_nih(tmp_path_factory.mktemp("source") / "nih", 40, seed=3, size=96, test_fraction=0.25)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def packed(root: Path, out: Path, size: int | None = 48, workers: int = 0, **options: Any) -> Prepared:
    data = DataConfig(data="nih", root=str(root), workers=0)
    return prepare(data, out, Packer(size, **options), workers=workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(folder: Path, index: int) -> None:
    """One grey value of one film."""
    data = PackedFilms(folder)
    shard = folder / f"shard-{data._shard[index]:05d}.arrow"
    content = bytearray(shard.read_bytes())
    content[content.index(data.film(index).pixels.tobytes()) + 100] ^= 255
    shard.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 2])
def test_packed_films_train_as_the_readers_do(nih: Path, tmp_path: Path, workers: int) -> None:
    assert packed(nih, tmp_path, workers=workers) == Prepared(40, ())
    assert len(list(tmp_path.glob("*.arrow"))) == 3
    for split, part in (("train_val", "train"), ("test", "test")):
        whole = collect(NIHChestXray(nih, split), Preprocessing(size=48))
        data = open_part(DataConfig(root=str(tmp_path)), part, Preprocessing(size=48))  # type: ignore[arg-type]
        assert (data.ids, data.patients, data.findings) == (whole.ids, whole.patients, whole.findings)
        assert (data.split_hash, data.split_name) == (whole.split_hash, f"nih-{split}")
        assert torch.equal(data.labels, whole.labels)
        assert data.masks is None
        assert data.images.shape == whole.images.shape
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        assert torch.equal(data.images[order], whole.images[order])
        assert measured(data) == measured(whole)
        some = data.subset([3, 1])
        assert torch.equal(some.images[:], whole.images[[3, 1]])
        assert some.ids == (data.ids[3], data.ids[1])


def test_films_as_they_are_serve_every_size_and_stretch(nih: Path, tmp_path: Path) -> None:
    packed(nih, tmp_path, size=None)
    source, kept = NIHChestXray(nih, "test"), PackedFilms(tmp_path, "test")
    assert torch.equal(source[4]["image"], kept[4]["image"])
    for preprocessing in (Preprocessing(size=32), Preprocessing(size=128, percentiles=None)):
        assert torch.equal(collect(source, preprocessing).images[:], collect(kept, preprocessing).images[:])


def test_smaller_than_packed(nih: Path, tmp_path: Path) -> None:
    packed(nih, tmp_path, size=64)
    data = PackedFilms(tmp_path, "test")
    small = collect(data, Preprocessing(size=32)).images[:].float()
    direct = collect(NIHChestXray(nih, "test"), Preprocessing(size=32)).images[:].float()
    assert (small - direct).abs().mean() < 2
    with pytest.raises(ValueError, match=r"size is 96, but the packed films of .* have 64 pixels"):
        collect(data, Preprocessing(size=96))
    with pytest.raises(ValueError, match=r"are stretched by percentiles \(1\.0, 99\.0\), expected None"):
        collect(data, Preprocessing(size=64, percentiles=None))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("percentiles", [(1.0, 99.0), (0.0, 100.0), (30.0, 31.0), None])
def test_stored_values_are_stretched_as_grey_values_are(dtype: Any, percentiles: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        top = int(rng.integers(1, np.iinfo(dtype).max))
        stored = rng.integers(0, top, tuple(rng.integers(1, 40, 2)), dtype=dtype, endpoint=True)
        grey = stored.astype(np.float32) / np.float32(np.iinfo(dtype).max)
        preprocessing = Preprocessing(24, percentiles)
        np.testing.assert_array_equal(preprocessing.store(stored), preprocessing.store(grey))
        assert percentiles is None or percentile_normalize(grey, *percentiles).max() <= 1


def test_masks_of_a_table(nih: Path, tmp_path: Path) -> None:
    drawn = PhantomXray(40, seed=3, size=96)
    ids = sorted(path.name for path in (nih / "images").iterdir())
    writer = MaskWriter(tmp_path / "m.parquet")
    masks = {name: drawn.sample(index).masks for index, name in enumerate(ids)}
    for name in ids[:-1]:
        writer.add(to_row(name, masks[name], 0.5, 1.0, ()))
    writer.finish()
    arguments = ["prepare", "--data", "nih", "--root", nih, "--workers", 0, "--masks", tmp_path / "m.parquet"]
    said = run(*arguments, "--out", tmp_path / "p", "--size", 96, code=1)
    assert "39 films packed, 1 failed" in said
    assert f"failed: {ids[-1]}: mask table '{tmp_path}/m.parquet' has no image '{ids[-1]}'." in said
    data = PackedFilms(tmp_path / "p")
    assert ids[-1] not in data.ids
    for index in (0, 7, 21):
        np.testing.assert_array_equal(data.film(index).masks, masks[data.ids[index]])
    batch = Batches(collect(data, Preprocessing(size=96))).__getitems__([2, 5])
    for row, index in enumerate((2, 5)):
        np.testing.assert_array_equal(batch["mask"][row] == 255, organs_to_anatomies(masks[data.ids[index]]))
    half = collect(data, Preprocessing(size=48)).masks
    assert half is not None
    assert half[:].float().mean() == pytest.approx(
        float(collect(data, Preprocessing(size=96)).masks[:].float().mean()), rel=0.01
    )  # type: ignore[index]


def test_masks_of_the_segmenter(nih: Path, tmp_path: Path) -> None:
    """They are those that fit would draw on the same films, at one threshold."""
    from axnet.segment import load_pretrained
    from axnet.train import with_predicted_masks

    root = write_nih(tmp_path / "nih", 6, seed=5, size=64, test_fraction=0.5)
    config = DataConfig(data="nih", root=str(root), workers=0)
    packer, said = pack_options(config, 48, "segmenter", None)
    prepare(config, tmp_path / "p", packer, masks=said, splits=("all",))
    assert PackedFilms(tmp_path / "p").manifest.masks.startswith("segmenter frontal.safetensors ")  # type: ignore[union-attr]
    data = open_part(DataConfig(root=str(tmp_path / "p"), split="all"), "train", Preprocessing(size=48))
    soft = with_predicted_masks(data, load_pretrained()).masks
    assert data.masks is not None
    assert soft is not None
    hard = data.masks[:]
    assert set(hard.unique().tolist()) == {0, 255}
    assert torch.equal(hard == 255, soft[:] >= 128)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "abacus"], "device is 'abacus', which does not serve here"),
        (["--masks", "none.parquet"], r"mask table 'none\.parquet' does not exist"),
        (["--split", "valid"], r"split is 'valid', expected one of"),
        (["--split", "train_val,all"], "patients are in both 'train_val' and 'all'"),
        (["--views", "lateral"], "views .*lateral.* leaves none of the 29 films of split 'train_val'"),
    ],
)
def test_wrong_options_get_one_sentence(nih: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        run("prepare", "--data", "nih", "--root", nih, "--out", tmp_path, "--workers", 0, *arguments)
    assert "\n" not in str(caught.value)
    assert not contents(tmp_path)


def test_a_part_alone_has_no_other(nih: Path, tmp_path: Path) -> None:
    """Films of one split, or of a list, say themselves what they cannot serve for."""
    mine = tmp_path / "mine.txt"
    mine.write_text("\n".join(NIHChestXray(nih, "train_val").ids[:4]))
    for split, part, words in (("train_val", "test", "be measured on"), (str(mine), "train", "train on")):
        out = tmp_path / part
        prepare(DataConfig(data="nih", root=str(nih), workers=0), out, Packer(48), splits=(split,))
        with pytest.raises(ValueError, match=rf"split is missing: the packed folder .* has none to {words}"):
            DataConfig(root=str(out)).source(part)
        assert len(DataConfig(root=str(out), split="all").source(part)) > 0


def test_nothing_is_made_twice(nih: Path, tmp_path: Path) -> None:
    packed(nih, tmp_path)
    before = {path.name: path.stat().st_ino for path in tmp_path.glob("*.arrow")}
    whole = contents(tmp_path)
    assert packed(nih, tmp_path, workers=1) == Prepared(40, ())
    assert contents(tmp_path) == whole
    assert {path.name: path.stat().st_ino for path in tmp_path.glob("*.arrow")} == before
    # what is damaged or lost is made again, the rest is not
    damage(tmp_path, 20)
    (tmp_path / "shard-00002.arrow").unlink()
    assert packed(nih, tmp_path) == Prepared(40, ())
    assert contents(tmp_path) == whole
    assert (tmp_path / "shard-00000.arrow").stat().st_ino == before["shard-00000.arrow"]


def test_other_films_or_settings_need_another_folder(nih: Path, tmp_path: Path) -> None:
    packed(nih, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="packed with size 48, now it is 32: expected the same, or another folder"):
        packed(nih, tmp_path, size=32)
    other = write_nih(tmp_path.parent / "other", 40, seed=4, size=32, test_fraction=0.25)
    with pytest.raises(ValueError, match="holds other films or labels"):
        packed(other, tmp_path)
    with pytest.raises(ValueError, match="is packed already"):
        prepare(DataConfig(root=str(tmp_path)), tmp_path / "again", Packer(16))
    assert contents(tmp_path) == before


def test_a_film_that_cannot_be_read(nih: Path, tmp_path: Path) -> None:
    root = shutil.copytree(nih, tmp_path / "nih")
    bad = sorted((root / "images").iterdir())[17]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    arguments = ["prepare", "--data", "nih", "--root", root, "--size", 32, "--masks", "none", "--workers", 0, "--quiet"]
    for _ in range(2):
        said = run(*arguments, "--out", tmp_path / "p", code=1)
        assert "39 films packed, 1 failed" in said
        assert f"failed: {bad.name}: image file '{bad}' is truncated" in said
        record = json.loads((tmp_path / "p" / MANIFEST).read_text())
        assert [entry["id"] for entry in record["failed"]] == [bad.name]
        assert bad.name not in PackedFilms(tmp_path / "p").ids
    data, source = PackedFilms(tmp_path / "p"), NIHChestXray(root, "all")
    for index in (0, 15, 30, 38):  # rows go on after the one that is missing
        assert data.film(index).image == data.ids[index]
        np.testing.assert_array_equal(data.labels[index], source.labels[source.ids.index(data.ids[index])])
    bad.write_bytes(whole)
    assert "40 films packed: " in run(*arguments, "--out", tmp_path / "p")
    assert bad.name in PackedFilms(tmp_path / "p").ids


def test_no_film_at_all_can_be_read(nih: Path, tmp_path: Path) -> None:
    root = shutil.copytree(nih, tmp_path / "nih")
    for path in (root / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 40 films could be read, among them"):
        packed(root, tmp_path / "p")


def test_films_of_sixteen_bits(nih: Path, tmp_path: Path) -> None:
    root = shutil.copytree(nih, tmp_path / "nih")
    for path in (root / "images").iterdir():
        grey = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(grey * 3 + 20000).save(path)
    packed(root, tmp_path / "p", size=None)
    source, data = NIHChestXray(root, "test"), PackedFilms(tmp_path / "p", "test")
    assert data.film(0).pixels.dtype == np.uint16
    assert torch.equal(source[5]["image"], data[5]["image"])
    assert torch.equal(
        collect(source, Preprocessing(size=32)).images[:], collect(data, Preprocessing(size=32)).images[:]
    )


def test_the_commands_take_the_folder(nih: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "run", tmp_path / "run" / "model.safetensors"
    sizes = ["--train-images", 24, "--test-images", 20]
    run("prepare", *sizes, "--size", 32, "--out", tmp_path / "p", "--workers", 0, "--quiet")
    small = ["--backbone", "tiny", "--size", 32, "--epochs", 1, "--batch-size", 8, "--reduction", 0.25]
    said = run("fit", "--root", tmp_path / "p", *small, "--out", out, "--workers", 1, "--quiet", "--accelerator", "cpu")
    assert "train: 23 images, validation: 1, split " in said
    assert "mean AUC" in run("evaluate", "--root", tmp_path / "p", "--weights", weights, "--out", tmp_path / "report")
    run("predict", tmp_path / "p", "--weights", weights, "--out", tmp_path / "all.csv")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + 44
    with pytest.raises(ValueError, match=r"data is 'nih', but root .* holds packed films of 'phantom'"):
        run("fit", "--data", "nih", "--root", tmp_path / "p", "--out", out)
    # a shard that is damaged: one sentence, and predict does the rest
    damage(tmp_path / "p", 3)
    said = run("predict", tmp_path / "p", "--weights", weights, "--out", tmp_path / "rest.csv", code=1)
    assert "43 images scored, 1 failed" in said
    assert "shard 'shard-00000.arrow' is damaged" in said
    rest, whole = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("rest", "all"))
    assert set(rest) < set(whole)
    with pytest.raises(ValueError, match=r"shard 'shard-00000\.arrow' is damaged") as caught:
        run("fit", "--root", tmp_path / "p", *small, "--out", out, "--workers", 0, "--quiet", "--accelerator", "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_one_sentence(
    nih: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where another process reads it."""
    packed(nih, tmp_path / "p", size=32)
    damage(tmp_path / "p", 3)
    small = ["--architecture", "densenet-gap", "--backbone", "tiny", "--size", "32", "--accelerator", "cpu", "--quiet"]
    places = ["--root", str(tmp_path / "p"), "--out", str(tmp_path / "run"), "--workers", str(workers)]
    monkeypatch.setattr("axnet.train.fitting.measured", lambda data: data.preprocessing)  # which reads first
    monkeypatch.setattr("axnet.train.resuming._MASKS_SEEN", 0)
    monkeypatch.setattr("sys.argv", ["axnet", "fit", *places, *small])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"axnet: packed films '{tmp_path}/p', '")
    assert said.endswith("is not what was written.")
    assert len(said) < 400


@pytest.mark.parametrize("data", ["nih", "phantom"])
def test_what_is_known_of_the_films_is_packed(nih: Path, tmp_path: Path, data: str) -> None:
    """Sex, age, view and boxes: subgroups and localisation are those of the films as they were."""
    sizes = {"train_images": 6, "test_images": 12}
    config = DataConfig(data=data, root=str(nih) if data == "nih" else None, workers=0, **sizes)  # type: ignore[arg-type]
    prepare(config, tmp_path, Packer(48), workers=0)
    source = config.source("test", size=48)
    kept = DataConfig(root=str(tmp_path)).source("test")
    assert isinstance(kept, PackedFilms)
    known = Facts.of(source)
    assert set(known.attributes) == {"sex", "age", "view"}
    assert known.boxes
    assert Facts.of(kept) == known
    if isinstance(source, NIHChestXray):
        np.testing.assert_array_equal(kept.table["age"], source.table["age"])
    film = kept.ids[known.boxes[0].row]
    expected = [Box(box.finding, *(48 * side for side in box[2:])) for box in known.boxes if kept.ids[box.row] == film]
    assert kept.boxes(film) == expected
    chosen = PackedFilms(tmp_path, "test", findings=[known.boxes[0].finding], views="PA")
    assert {box.finding for box in Facts.of(chosen).boxes} <= {known.boxes[0].finding}
    with pytest.raises(ValueError, match="image_id is 'x', expected a film of split 'test'"):
        kept.boxes("x")


def test_a_pack_of_an_older_axnet(nih: Path, tmp_path: Path) -> None:
    """It has no sex, age and boxes, says so, and gets them without being packed again."""
    packed(nih, tmp_path, size=32)
    whole = contents(tmp_path)
    before = (tmp_path / "shard-00000.arrow").stat().st_ino
    table = pq.read_table(tmp_path / FILMS).drop_columns(["sex", "age", "boxes"])
    pq.write_table(table, tmp_path / FILMS)
    said = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**said, "films": sha256(tmp_path / FILMS)}))
    old = PackedFilms(tmp_path, "test")
    sentence = f"packed films '{tmp_path}' keep no sex, age and boxes, since an older axnet packed them"
    facts = Facts.of(old)
    assert set(facts.attributes) == {"view"}
    assert not facts.boxes
    assert [line.startswith(sentence) for line in facts.lacking] == [True]
    assert Facts.of(Joined({"a": old, "b": NIHChestXray(nih, "test")})).lacking == facts.lacking
    with pytest.raises(ValueError, match="keep no sex, age and boxes, since an older axnet packed them: the same"):
        old.boxes(old.ids[0])
    packed(nih, tmp_path, size=32)
    assert contents(tmp_path) == whole
    assert (tmp_path / "shard-00000.arrow").stat().st_ino == before
