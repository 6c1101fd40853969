from __future__ import annotations

import csv
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from axnet.cli.segment import app
from axnet.data import ORGANS, MaskTable, write_nih
from axnet.segment import Anatomy, Segmenter
from axnet.segment.output import PngFolder

DICOM = Path(pydicom.__file__).parent / "data" / "test_files" / "MR_small.dcm"


@pytest.fixture
def run(segmenter, tmp_path):
    """Six phantoms as PNG files, and the command that draws them."""
    segmenter.save(tmp_path / "s.safetensors")
    folder = write_nih(tmp_path / "nih", 6, size=64) / "images"

    def predict(*more):
        arguments = ["predict", str(folder), "--weights", str(tmp_path / "s.safetensors"), "--out", str(tmp_path / "o")]
        return CliRunner().invoke(app, [*arguments, *more])

    return predict, folder, tmp_path / "o"


def counts(output):
    """Films drawn, there before, and failed."""
    return tuple(map(int, re.search(r"(\d+) drawn \(\d+ flagged\), (\d+) were there, (\d+) failed", output).groups()))


def rows(out):
    with (out / "anatomy.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_predict_command_goes_on_after_a_bad_file_and_repeats_nothing(run):
    predict, folder, out = run
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[0]).write_bytes((folder / names[0]).read_bytes()[:100])
    first = predict()
    assert first.exit_code == 1
    assert counts(first.output) == (5, 0, 1)
    assert names[0] in first.output
    second = predict()
    assert second.exit_code == 1
    assert counts(second.output) == (0, 5, 1)
    assert [row["image"] for row in rows(out)] == names[1:]
    for organ in ORGANS:
        assert len(list((out / organ).iterdir())) == 5


def test_predict_command_mends_what_a_killed_run_left(run):
    predict, _, out = run
    assert predict("--batch-size", "4").exit_code == 0
    whole = rows(out)
    table = out / "anatomy.csv"
    table.write_bytes(table.read_bytes()[:-10])  # half a row at the end
    (out / "heart" / f"{whole[2]['image'][:-4]}.png").unlink()
    again = predict("--device", "cpu")
    assert counts(again.output) == (2, 4, 0)
    assert sorted(map(str, rows(out))) == sorted(map(str, whole))


def test_predict_command_writes_one_header_when_all_files_failed(run):
    predict, folder, out = run
    for path in folder.iterdir():
        path.write_bytes(b"not an image")
    for _ in range(2):
        assert predict().exit_code == 1
    assert (out / "anatomy.csv").read_text().splitlines() == ["image,ctr,quality,flags"]


def test_predict_command_leaves_a_foreign_table_alone(run):
    predict, _, out = run
    out.mkdir()
    (out / "anatomy.csv").write_text("name,age\nx,3\n")
    result = predict()
    assert isinstance(result.exception, ValueError)
    assert "has columns ['name', 'age']" in str(result.exception)
    assert (out / "anatomy.csv").read_text() == "name,age\nx,3\n"


def test_predict_command_names_a_device_that_does_not_serve(run):
    predict, _, out = run
    result = predict("--device", "abacus")
    assert result.exit_code == 2
    assert "device is 'abacus'" in re.sub(r"[\s│]+", " ", result.output)
    assert not out.exists()


def test_fit_command_on_the_phantom(tmp_path):
    out = tmp_path / "s.safetensors"
    arguments = ["fit", "--data", "phantom", "--preset", "tiny", "--size", "32", "--phantom-images", "12"]
    result = CliRunner().invoke(app, [*arguments, "--epochs", "1", "--out", str(out), "--quiet"])
    assert result.exit_code == 0, result.output
    assert result.output.count("Dice") == 6
    assert Segmenter.load(out).config.size == 32
    refused = CliRunner().invoke(app, ["fit", "--out", str(out)])
    assert "root is missing" in str(refused.exception)


def test_help_loads_none_of_the_heavy_packages():
    code = "import sys; from axnet.cli.segment import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "axnet.cli.segment" in loaded
    assert loaded.isdisjoint({"monai", "lightning", "pandas", "scipy", "axnet.segment.segmenter"})


def test_predict_command_writes_a_table_and_goes_on_with_it(run):
    predict, folder, out = run
    table = out.with_name("anatomy.parquet")
    names = sorted(path.name for path in folder.iterdir())
    kept = (folder / names[2]).read_bytes()
    (folder / names[2]).write_bytes(b"not an image")
    assert counts(predict("--out", str(table)).output) == (5, 0, 1)
    (folder / names[2]).write_bytes(kept)
    again = predict("--out", str(table))
    assert counts(again.output) == (1, 5, 0)
    found = MaskTable(table)
    assert sorted(found.ids) == names
    predict()
    png = np.asarray(Image.open(out / "heart" / names[0])) > 0
    np.testing.assert_array_equal(found.masks(names[0])[2], png)


def test_a_killed_run_keeps_every_batch_in_the_table(run, monkeypatch):
    predict, _, out = run
    table, drawn = out.with_name("anatomy.parquet"), Segmenter.predict
    batches = []

    def killed(self, images, **options):
        batches.append(len(images))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return drawn(self, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "predict", killed)
        predict("--out", str(table), "--batch-size", "2")
    assert batches == [2, 2]
    assert counts(predict("--out", str(table)).output) == (4, 2, 0)
    assert len(MaskTable(table)) == 6


def test_the_sheet_shows_the_least_certain_films(run):
    predict, _, out = run
    sheet = out.with_name("sheet.html")
    result = predict("--sheet", str(sheet), "--sheet-films", "4")
    assert result.exit_code == 0, result.output
    page = sheet.read_text()
    qualities = sorted(float(row["quality"]) for row in rows(out))
    shown = [float(text) for text in re.findall(r"quality (\d\.\d+)", page)]
    assert shown == pytest.approx(qualities[:4], abs=0.006)
    assert page.count("data:image/jpeg") == 4
    assert "The 4 least certain of 6 films" in page


def test_folders_of_patients_keep_their_paths(run, tmp_path):
    predict, folder, out = run
    paths = sorted(folder.iterdir())
    for patient, path in enumerate(paths):
        target = folder / f"patient{patient // 2}" / f"study{patient % 2}" / "view1_frontal.png"
        target.parent.mkdir(parents=True)
        path.rename(target)
    (folder / "patient0" / "._view1_frontal.png").write_bytes(b"\0\5\x16\7")
    assert counts(predict().output) == (6, 0, 0)
    names = [f"patient{k // 2}/study{k % 2}/view1_frontal.png" for k in range(6)]
    assert [row["image"] for row in rows(out)] == names
    assert all((out / "heart" / name).is_file() for name in names)
    table = tmp_path / "a" / "b" / "anatomy.parquet"  # made, before the work
    assert counts(predict("--out", str(table)).output) == (6, 0, 0)
    assert MaskTable(table).ids == names
    assert counts(predict().output) == (0, 6, 0)


def test_images_of_one_name_and_different_kinds_keep_their_own_masks(run):
    predict, folder, out = run
    paths = sorted(folder.iterdir())
    Image.open(paths[1]).save(paths[0].with_suffix(".jpg"), quality=95)
    paths[0].with_suffix(".dcm").write_bytes(DICOM.read_bytes())
    assert counts(predict().output) == (8, 0, 0)
    stem = paths[0].stem
    masks = {(out / "heart" / f"{stem}{ending}").read_bytes() for ending in (".png", ".jpg.png", ".dcm.png")}
    assert len(masks) == 3
    # a suffix behind the whole name still leaves one case
    Image.open(paths[1]).save(folder / "IM0001.png")
    (folder / "IM0001").write_bytes(DICOM.read_bytes())
    refused = predict()
    assert "'IM0001' and 'IM0001.png', whose masks would both be 'IM0001.png'" in str(refused.exception)
    assert counts(predict("--out", str(out.with_name("t.parquet"))).output) == (10, 0, 0)


def test_a_sheet_that_cannot_be_written_stops_the_command_before_the_work(run, tmp_path):
    predict, _, out = run
    (tmp_path / "file").write_text("")
    refused = predict("--sheet", str(tmp_path / "file" / "sheet.html"))
    assert "--sheet: folder" in str(refused.exception)
    assert not out.exists()
    assert predict("--sheet", str(tmp_path / "new" / "sheet.html")).exit_code == 0
    assert (tmp_path / "new" / "sheet.html").is_file()


def anatomy(seed):
    masks = np.random.default_rng(seed).random((3, 16, 16)) > 0.5
    return Anatomy(masks, 0.5, 0.9, ())


def test_two_runs_on_one_folder_lose_nothing(tmp_path):
    one, two = PngFolder(tmp_path / "o"), PngFolder(tmp_path / "o")
    one.add("a.png", anatomy(0))
    one.flush()
    two.add("b.png", anatomy(1))
    two.add("a.png", anatomy(0))
    two.flush()
    table = tmp_path / "o" / "anatomy.csv"
    table.write_bytes(table.read_bytes() + b"c.png,0.")  # a third was killed
    one.add("d.png", anatomy(2))
    one.finish()
    two.finish()
    assert sorted(row["image"] for row in rows(tmp_path / "o")) == ["a.png", "b.png", "d.png"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == sorted([*ORGANS, "anatomy.csv"])
    assert "d.png" in PngFolder(tmp_path / "o")


def write_some(out, start):
    sink = PngFolder(out)
    for seed in range(start, start + 20):
        sink.add(f"{seed}.png", anatomy(seed))
        if seed % 3 == 0:
            sink.flush()
    sink.finish()


def test_processes_that_write_to_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=write_some, args=(tmp_path / "o", start)) for start in (0, 15, 30)]
    for process in runs:
        process.start()
    for process in runs:
        process.join()
        assert process.exitcode == 0
    assert sorted(int(row["image"][:-4]) for row in rows(tmp_path / "o")) == list(range(50))
    for seed in range(50):
        stored = np.stack([np.asarray(Image.open(tmp_path / "o" / organ / f"{seed}.png")) for organ in ORGANS])
        np.testing.assert_array_equal(stored, anatomy(seed).masks)
