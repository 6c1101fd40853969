"""A disk that is full, for every writer: one sentence, what was there before is whole, and nothing is left behind."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from axnet.cli import main
from axnet.data import MaskTable, MaskWriter, PackedFilms, PhantomXray
from axnet.data.mask_table import to_row
from axnet.models import AnatomyXNet, Preprocessing
from axnet.models.storage import save_classifier
from axnet.report.page import write_page
from axnet.segment import PRESETS, Segmenter
from axnet.segment.anatomy import Anatomy
from axnet.segment.output import PngFolder
from axnet.train import DataConfig, FitConfig, collect, fit, open_part
from axnet.train.packers import Packer
from axnet.train.packing import prepare
from axnet.train.resuming import write_record
from axnet.train.sources import cached_masks

resource = pytest.importorskip("resource", reason="limits of files belong to POSIX systems")


@contextmanager
def full_disk(limit: int = 0):
    """No file can grow beyond so many bytes: the kernel refuses it, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(seeds):
    return [to_row(f"{s}.png", np.random.default_rng(s).random((3, 40, 40)) > 0.6, 0.5, 0.9, []) for s in seeds]


class Drawer:
    """A segmenter that finds noise, which no file format makes small."""

    def predict_batch(self, images):
        return torch.rand(len(images), 3, *images.shape[-2:])

    plausible_batch = predict_batch

    def state_dict(self):
        return {"weight": torch.ones(3)}


def write_mask_table(folder: Path) -> None:
    writer = MaskWriter(folder / "m.parquet")
    for row in rows(range(10)):
        writer.add(row)
    writer.finish()


def write_png_masks(folder: Path) -> None:
    masks = np.random.default_rng(0).random((3, 64, 64)) > 0.5
    sink = PngFolder(folder / "masks")
    sink.add("a.png", Anatomy(masks, 0.5, 0.9, ()))
    sink.finish()


def write_cache(folder: Path) -> None:
    collect(PhantomXray(6, size=32), Preprocessing(size=32), folder=folder)


def write_predicted_masks(folder: Path) -> None:
    cached_masks(collect(PhantomXray(6, size=32), Preprocessing(size=32)), Drawer(), folder)


def write_materialized(folder: Path) -> None:
    PhantomXray(6, size=32).materialize(cache=folder)


def write_classifier(folder: Path) -> None:
    model = AnatomyXNet(2, backbone="tiny", reduction=0.25)
    save_classifier(folder / "model.safetensors", model, Preprocessing(size=32), ("Mass", "Nodule"), training={})


def write_segmenter(folder: Path) -> None:
    Segmenter(PRESETS["tiny"]).save(folder / "segmenter.safetensors")


def write_packed(folder: Path) -> None:
    prepare(DataConfig(train_images=20, test_images=4), folder, Packer(32))


def write_report_page(folder: Path) -> None:
    write_page(folder / "report.html", "<p>words</p>" * 1000)


def write_run_record(folder: Path) -> None:
    write_record(folder, {"lr": 0.1, "words": "words" * 1000})


WRITERS = [
    write_mask_table,
    write_png_masks,
    write_cache,
    write_predicted_masks,
    write_materialized,
    write_classifier,
    write_segmenter,
    write_packed,
    write_report_page,
    write_run_record,
]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("limit", [0, 100])
def test_nothing_is_left_and_the_next_try_succeeds(tmp_path, writer, limit):
    with full_disk(limit), pytest.raises(OSError, match=r"(?i)file too large") as caught:
        writer(tmp_path)
    assert "\n" not in str(caught.value)
    assert not [name for name in contents(tmp_path) if not name.endswith((".lock", "anatomy.csv"))]
    writer(tmp_path)
    assert contents(tmp_path)


@pytest.mark.parametrize("writer", [write_classifier, write_segmenter, write_report_page, write_run_record])
def test_the_file_of_before_is_whole(tmp_path, writer):
    writer(tmp_path)
    before = contents(tmp_path)
    with full_disk(100), pytest.raises(OSError, match=r"(?i)file too large") as caught:
        writer(tmp_path)
    assert caught.value.errno == errno.EFBIG
    assert contents(tmp_path) == before


def test_shards_that_are_whole_stay(tmp_path):
    with full_disk(20_000), pytest.raises(OSError, match=r"(?i)cannot write '.*shard-00000.arrow': file too large\.$"):
        write_packed(tmp_path)  # its first shard is larger, its second would not be
    assert sorted(contents(tmp_path)) == [".prepare/plan.json"]
    write_packed(tmp_path)
    assert len(PackedFilms(tmp_path)) == 24


def test_a_mask_table_keeps_its_rows(tmp_path):
    write_mask_table(tmp_path)
    before = contents(tmp_path)
    writer = MaskWriter(tmp_path / "m.parquet")
    for row in rows(range(10, 14)):
        writer.add(row)
    with full_disk(100), pytest.raises(OSError, match=r"(?i)file too large"):
        writer.finish()
    assert contents(tmp_path)["m.parquet"] == before["m.parquet"]
    writer.finish()
    assert sorted(MaskTable(tmp_path / "m.parquet").ids) == sorted(f"{s}.png" for s in range(14))
    assert os.listdir(tmp_path) == ["m.parquet"]


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path):
    data = open_part(DataConfig(train_images=40, workers=0), "train", Preprocessing(size=32)).split_by_patient(0.25)
    config = FitConfig(
        out=str(tmp_path / "out"),
        epochs=1,
        batch_size=8,
        accelerator="cpu",
        progress=False,
        schedule="constant",
        options={"backbone": "tiny", "reduction": 0.25},
    )
    fit(config, *data)
    kept = [tmp_path / "out" / name for name in ("checkpoints/last.ckpt", "model.safetensors")]
    before = [path.read_bytes() for path in kept]
    longer = replace(config, epochs=2, resume=True)
    with full_disk(len(before[0]) // 2), pytest.raises(OSError, match=r"(?i)file too large"):
        fit(longer, *data)
    assert [path.read_bytes() for path in kept] == before
    result = fit(longer, *data)
    whole = fit(replace(config, epochs=2, out=str(tmp_path / "whole")), *data)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], value), name


def test_the_command_says_it_in_one_sentence(tmp_path, monkeypatch, capsys):
    write_classifier(tmp_path)
    write_segmenter(tmp_path)
    film, out = tmp_path / "film.png", tmp_path / "scores.csv"
    Image.fromarray(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)).save(film)
    out.write_text("image,Mass\n")
    before = contents(tmp_path)
    options = {"weights": "model.safetensors", "segmenter": "segmenter.safetensors", "out": "scores.csv"}
    words = [word for name, file in options.items() for word in (f"--{name}", str(tmp_path / file))]
    monkeypatch.setattr("sys.argv", ["axnet", "predict", str(film), *words])
    with full_disk(10), pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said == f"axnet: cannot write '{out}': File too large; the file that was there before is whole.\n"
    assert contents(tmp_path) == before
