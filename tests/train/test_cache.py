"""Kept images and masks: found again by what they are, shared by runs, never half there."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from axnet.data import MaskTable, NIHChestXray, PhantomXray, write_nih
from axnet.models import Preprocessing
from axnet.train import XraySet, collect
from axnet.train.anatomy import SEGMENTER_NAME, find_segmenter
from axnet.train.data import Batches
from axnet.train.sources import DataConfig, cached_masks

PLAIN = Preprocessing(size=32, percentiles=None)


class Source(PhantomXray):
    """Phantoms that note in a file whenever one is drawn."""

    def __init__(self, log: Path, length: int = 40, **options: Any) -> None:
        super().__init__(length, size=32, **options)
        self.log = log

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self.log.open("a") as file:
            file.write("drawn\n")
        return super().__getitem__(index)


def drawn(log: Path) -> int:
    return log.read_text().count("drawn") if log.is_file() else 0


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_second_run_reads_what_the_first_wrote(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "cache"
    first = collect(Source(log), PLAIN, folder=folder)
    before, count = stamps(folder), drawn(log)
    assert len(before) == 2
    second = collect(Source(log), PLAIN, folder=folder)
    assert stamps(folder) == before
    assert drawn(log) == count + 1  # one item tells the shapes
    for one, other in ((first.images, second.images), (first.masks, second.masks)):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    assert torch.equal(first.images, collect(PhantomXray(40, size=32), PLAIN).images)
    second.images.zero_()  # reaches neither the file nor the other run
    assert first.images.any()
    assert collect(Source(log), PLAIN, folder=folder).images.any()


def test_other_content_has_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = collect(PhantomXray(8, size=32), PLAIN, folder=folder)
    kept = first.images.clone()
    made = {frozenset(stamps(folder))}
    for source, preprocessing in (
        (PhantomXray(8, size=32), Preprocessing(size=32)),
        (PhantomXray(8, size=32), Preprocessing(size=32, percentiles=(2, 98))),
        (PhantomXray(8, size=32), Preprocessing(size=16, percentiles=None)),
        (PhantomXray(8, size=48), PLAIN),
        (PhantomXray(8, size=32, seed=1), PLAIN),
        (PhantomXray(8, size=32, with_masks=False), PLAIN),
        (PhantomXray(8, size=32, transform=lambda item: {**item, "image": 1 - item["image"]}), PLAIN),
    ):
        held, stored = collect(source, preprocessing), collect(source, preprocessing, folder=folder)
        assert torch.equal(held.images, stored.images)
        made.add(frozenset(stamps(folder)))
    assert len(made) == 8
    assert torch.equal(first.images, kept)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_film_or_table_that_changes_is_read_again(tmp_path: Path) -> None:
    root = write_nih(tmp_path / "nih", 12, size=48, test_fraction=0.3)
    names = NIHChestXray(root, "all").ids
    table = tmp_path / "masks.csv"
    head = "Image Index,Left Lung,Right Lung,Heart,Height,Width\n"
    table.write_text(head + "".join(f"{name},1 9,9 9,30 40,32,32\n" for name in names))

    def read() -> XraySet:
        return collect(NIHChestXray(root, "all", masks=MaskTable(table)), PLAIN, folder=tmp_path / "cache")

    first = read()
    assert len(stamps(tmp_path / "cache")) == 2
    read()
    assert len(stamps(tmp_path / "cache")) == 2
    Image.fromarray(np.full((64, 64), 200, np.uint8)).save(NIHChestXray(root, "all").path(names[3]))
    assert (read().images[3] == 200).all()
    table.write_text(table.read_text().replace("30 40", "30 400"))
    second = read()
    assert second.masks is not None
    assert first.masks is not None
    assert second.masks.float().mean() > first.masks.float().mean()
    # masks of unknown origin name nothing: their content does
    for shift in (3, 5):
        source = NIHChestXray(root, "all", masks=lambda _, shift=shift: np.eye(32, k=shift)[None])
        assert collect(source, PLAIN, folder=tmp_path / "cache").masks[0, 0, 0, shift] > 0


def run_collect(log: Path, folder: Path, result: Any) -> None:
    result.put(int(collect(Source(log, 80), PLAIN, folder=folder).images.sum()))


def test_of_several_processes_one_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    result = context.Queue()
    work = [context.Process(target=run_collect, args=(tmp_path / "log", tmp_path / "c", result)) for _ in range(3)]
    for process in work:
        process.start()
    sums = {result.get(timeout=300) for _ in work}
    for process in work:
        process.join()
    assert sums == {int(collect(PhantomXray(80, size=32), PLAIN).images.sum())}
    assert drawn(tmp_path / "log") == 80 + 3
    assert len(list((tmp_path / "c").iterdir())) == 2


def limited(folder: Path, result: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        collect(PhantomXray(40, size=32), PLAIN, folder=folder)
    except OSError as error:
        result.put(type(error).__name__)
    else:
        result.put("written")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    result = context.Queue()
    process = context.Process(target=limited, args=(tmp_path / "c", result))
    process.start()
    assert result.get(timeout=300) == "OSError"
    process.join()
    assert process.exitcode == 0
    assert not [path for path in (tmp_path / "c").iterdir() if path.suffix != ".lock"]
    assert len(collect(PhantomXray(40, size=32), PLAIN, folder=tmp_path / "c")) == 40


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    collect(PhantomXray(8, size=32), PLAIN, folder=tmp_path)
    file = next(tmp_path.glob("images-*.npy"))
    file.rename(file.with_name(f".{file.name}.123-abcdef"))
    collect(PhantomXray(8, size=32), PLAIN, folder=tmp_path)
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["images", "masks-"]


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "shape"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    collect(PhantomXray(8, size=32), PLAIN, folder=tmp_path)
    file = next(tmp_path.glob("images-*.npy"))
    content = file.read_bytes()
    if damage == "pickle":
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    elif damage == "shape":
        np.save(file, np.zeros((8, 1, 32, 31), np.uint8))
    else:
        file.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    with pytest.raises(ValueError, match=r"cache file '.*images-.*remove it to have it made again"):
        collect(PhantomXray(8, size=32), PLAIN, folder=tmp_path)


class Slow:
    """A segmenter that notes its calls in a file."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def predict_batch(self, images: torch.Tensor) -> torch.Tensor:
        with self.log.open("a") as file:
            file.write("drawn\n")
        return images.expand(-1, 3, -1, -1)

    plausible_batch = predict_batch

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.zeros(1, dtype=torch.bfloat16)}


def run_masks(data: XraySet, log: Path, folder: Path) -> None:
    cached_masks(data, Slow(log), folder)


def test_masks_are_drawn_by_one_process_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    data = collect(PhantomXray(8, size=32, with_masks=False), PLAIN)
    context = multiprocessing.get_context("fork")
    work = [context.Process(target=run_masks, args=(data, tmp_path / "log", tmp_path / "c")) for _ in range(3)]
    for process in work:
        process.start()
    for process in work:
        process.join()
        assert process.exitcode == 0
    assert drawn(tmp_path / "log") == 1
    assert [path.suffix for path in (tmp_path / "c").iterdir()] == [".npz"]
    masks = cached_masks(data, Slow(tmp_path / "log"), tmp_path / "c").masks
    assert masks is not None
    assert torch.equal(masks, data.images.expand(-1, 2, -1, -1))
    file = next((tmp_path / "c").iterdir())
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cache file '.*anatomy-.*npz' is damaged"):
        cached_masks(data, Slow(tmp_path / "log"), tmp_path / "c")


def test_the_runs_segmenter_is_replaced_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "run" / SEGMENTER_NAME
    find_segmenter(DataConfig(data="nih", root="x"), segmenter=None, organ_root=None, out=tmp_path / "run")
    with target.open("rb") as reader:
        inode = os.fstat(reader.fileno()).st_ino
        find_segmenter(DataConfig(data="nih", root="x"), segmenter=None, organ_root=None, out=tmp_path / "run")
        assert target.stat().st_ino != inode  # who reads the older file reads it to its end
    assert [path.name for path in target.parent.iterdir()] == [SEGMENTER_NAME]


@pytest.mark.parametrize("first", [0, 100])
def test_masks_of_0_and_1_are_refused_where_1_is_a_255th(first: int) -> None:
    data = collect(PhantomXray(130, size=32), PLAIN)
    assert data.masks is not None
    masks = (data.masks > 127).to(torch.uint8)
    masks[:first] = 0
    wrong = XraySet(**{**vars(data), "masks": masks})
    with pytest.raises(ValueError, match="masks with a largest value of 1, expected uint8 from 0 to 255"):
        Batches(wrong)
    Batches(XraySet(**{**vars(data), "masks": masks * 255}))
    Batches(XraySet(**{**vars(data), "masks": torch.zeros_like(masks)}))
