"""Packed films against files, and against other engines: films a second, and memory at 200,000 films.

python benchmarks/packed.py                          # loaders and axnet prepare; engines that are installed take part
python benchmarks/packed.py --memory                 # prepare and fit of 200,000 films under names of their own

Rates are the best of several rounds, in which all take turns: others may use the machine. CPU seconds count all
processes of a round, so that they say the same on a busy machine. Every loader gives images and labels; ours with
masks, which the other engines lack, is a line of its own. A round is an epoch: the start of its process is in it, for
all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from axnet.data import CSVDataset, PackedFilms, PhantomXray, read_image
from axnet.imaging import resize
from axnet.models import Preprocessing
from axnet.report import environment
from axnet.train import DataConfig, collect, with_blank_masks
from axnet.train.data import Batches, _stack, _Stored
from axnet.train.data import loader as batch_loader
from axnet.train.packers import Packer
from axnet.train.packing import prepare

RESULTS = Path(__file__).resolve().parent / "results"
BATCH = 32
SMALL = 16  # pixels of the many films: what grows with their number is kept by film, whatever its size
FINDINGS = ("Effusion", "Mass")


def films(folder: Path, count: int, side: int) -> Path:
    """A table of PNG films: phantoms with the noise of a detector, shifted so that no two are alike."""
    drawn = PhantomXray(8, size=256, split="test")
    rng = np.random.default_rng(0)
    bases = [resize(np.asarray(drawn.sample(index).image, dtype=np.float32), side) for index in range(8)]
    bases = [(base + rng.normal(0, 1.0, base.shape)).clip(0, 255).astype(np.uint8) for base in bases]
    (folder / "films").mkdir(parents=True)
    rows = ["path," + ",".join(FINDINGS)]
    for index in range(count):
        grey = np.roll(bases[index % 8], int(rng.integers(side)), axis=1)
        Image.fromarray(grey).save(folder / "films" / f"{index}.png", compress_level=1)
        rows.append(f"films/{index}.png,{index % 2},{index % 3 // 2}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


def packed(table: Path, out: Path, size: int, workers: int) -> PackedFilms:
    prepare(DataConfig(data="csv", root=str(table)), out, Packer(size), splits=("all",), workers=workers)
    return PackedFilms(out)


class Clock:
    """Rates and CPU seconds of rounds."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.rates: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def run(self, name: str, work: Callable[[], int]) -> None:
        before, started = cpu_seconds(), time.perf_counter()
        seen = work()
        assert seen >= self.count - BATCH, (name, seen)
        self.rates.setdefault(name, []).append(seen / (time.perf_counter() - started))
        self.cpu.setdefault(name, []).append((cpu_seconds() - before) / seen)

    def record(self) -> dict[str, Any]:
        return {
            name: {"films a second": round(max(rates)), "CPU ms a film": round(1e3 * min(self.cpu[name]), 3)}
            for name, rates in self.rates.items()
        }

    def against(self, ours: str, other: str) -> dict[str, float]:
        """How ours compares with another, round by round: medians, since others may use the machine."""
        rate = np.array(self.rates[ours]) / np.array(self.rates[other])
        cpu = np.array(self.cpu[ours]) / np.array(self.cpu[other])
        return {"films a second": round(float(np.median(rate)), 2), "CPU": round(float(np.median(cpu)), 2)}


def cpu_seconds() -> float:
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def seen(batches: Iterable[Any], key: Any) -> int:
    return sum(len(batch[key]) for batch in batches)


def loader(data: PackedFilms, workers: int, size: int = 224) -> Callable[[], int]:
    films = collect(data, Preprocessing(size=size))
    batches = Batches(with_blank_masks(films) if films.masks is None else films)
    made = batch_loader(batches, batch_size=BATCH, workers=workers, shuffle=True)
    return lambda: seen(made, "image")


def png_folder(table: Path, workers: int) -> Callable[[], int]:
    items: Any = _Stored(CSVDataset(table), Preprocessing(size=224))
    made: Any = DataLoader(items, BATCH, shuffle=True, num_workers=workers, collate_fn=_stack)
    return lambda: seen(made, "images")


class Rows(Dataset[Any]):
    """Films of another engine by position."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return tensors(self.rows[index])


def tensors(row: Any) -> Any:
    image = torch.frombuffer(bytearray(row["image"]), dtype=torch.uint8).view(1, 224, 224)
    return image, torch.frombuffer(bytearray(row["label"]), dtype=torch.float32)


def row(data: PackedFilms, index: int) -> dict[str, Any]:
    return {"id": data.ids[index], "image": data.film(index).pixels.tobytes(), "label": data.labels[index].tobytes()}


def engines(data: PackedFilms, folder: Path) -> dict[str, Callable[[], int]]:
    """The same films in other engines: one worker, shuffled, batches of the same size."""
    found: dict[str, Callable[[], int]] = {}
    rows = [row(data, index) for index in range(len(data))]
    if importlib.util.find_spec("datasets"):
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({column: [each[column] for each in rows] for column in rows[0]})
        pq.write_table(table, folder / "films.parquet", compression="none", use_dictionary=False, row_group_size=100)
        cache = str(folder / "cache")
        held = datasets.load_dataset(
            "parquet", data_files=str(folder / "films.parquet"), split="train", cache_dir=cache
        )
        made: Any = DataLoader(Rows(held), BATCH, shuffle=True, num_workers=1)
        found["Hugging Face datasets"] = lambda: seen(made, 0)
    if importlib.util.find_spec("litdata"):
        from litdata import StreamingDataLoader, StreamingDataset, optimize

        class Lit(StreamingDataset):
            def __getitem__(self, index: Any) -> Any:
                return tensors(super().__getitem__(index))

        optimize(
            fn=rows.__getitem__,
            inputs=list(range(len(rows))),
            output_dir=str(folder / "lit"),
            chunk_bytes="64MB",
            num_workers=1,
        )
        multiprocessing.set_start_method("fork", force=True)  # which LitData has changed for all
        found["LitData"] = lambda: seen(
            StreamingDataLoader(Lit(str(folder / "lit"), shuffle=True), batch_size=BATCH, num_workers=1), 0
        )
    if importlib.util.find_spec("webdataset"):
        import webdataset

        with webdataset.ShardWriter(str(folder / "%05d.tar"), maxsize=64 * 2**20, verbose=0) as writer:
            for each in rows:
                name = each["id"].replace("/", "-").removesuffix(".png")
                writer.write({"__key__": name, "image": each["image"], "label": each["label"]})
        urls = sorted(map(str, folder.glob("*.tar")))
        web = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000).map(tensors)
        tars: Any = DataLoader(web, BATCH, num_workers=1)
        found["WebDataset"] = lambda: seen(tars, 0)
    return found


def pure(arguments: tuple[str, int]) -> int:
    """What must be done in any case: decode and resize."""
    resize(read_image(arguments[0]), arguments[1])
    return 1


def begin() -> None:
    torch.set_num_threads(1)


def prepared(table: Path, folder: Path, workers: int) -> Callable[[], int]:
    def work() -> int:
        shutil.rmtree(folder, ignore_errors=True)
        return len(packed(table, folder, 512, workers))

    return work


def masked(folder: Path, count: int) -> PackedFilms:
    """As many films with masks of lungs and heart."""
    drawn = DataConfig(train_images=count, workers=2)
    prepare(drawn, folder, Packer(224, own_masks=True), splits=("train",), masks="the set's own", workers=2)
    return PackedFilms(folder)


def speed(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    small = films(folder / "512", count, 512)
    large = films(folder / "1024", count // 4, 1024)
    data = packed(small, folder / "packed", 224, 2)
    two, one, made = Clock(count), Clock(count), Clock(count // 4)
    others = {
        "axnet, lungs and heart too": loader(masked(folder / "masked", count), 1),
        **engines(data, folder),
    }
    paths = [(str(path), 512) for path in sorted(large.parent.glob("films/*.png"))]

    def decoded() -> int:
        with multiprocessing.Pool(2, begin) as pool:
            return sum(pool.map(pure, paths, chunksize=16))

    for _ in range(rounds):
        two.run("packed", loader(data, 2))
        two.run("PNG folder", png_folder(small, 2))
        one.run("axnet", loader(data, 1))
        for name, work in others.items():
            one.run(name, work)
        made.run("decode and resize alone", decoded)
        made.run("axnet prepare", prepared(large, folder / "again", 2))
    return {
        "films": {"loaders": count, "prepare": count // 4},
        "512 px films to batches of 224 px, 2 workers": two.record(),
        "224 px, shuffled, 1 worker": one.record(),
        "axnet over these, medians of rounds": {name: one.against("axnet", name) for name in others},
        "1024 px films to 512 px, 2 processes": made.record(),
        "decode and resize alone over axnet prepare, CPU": round(
            1 / made.against("axnet prepare", "decode and resize alone")["CPU"], 2
        ),
    }


def memory(folder: Path, count: int) -> dict[str, Any]:
    """Prepare and fit of so many films, which are a few under many names."""
    table = films(folder, 64, SMALL)
    rows = ["path,patient,split," + ",".join(FINDINGS)]
    for index in range(count):
        os.link(folder / "films" / f"{index % 64}.png", folder / "films" / f"n{index}.png")
        rows.append(f"films/n{index}.png,p{index // 3},train,{index % 2},{index % 3 // 2}")
    table.write_text("\n".join(rows) + "\n")
    table.with_suffix(".json").write_text(json.dumps({"patient": "patient", "split": "split"}))
    out, run = str(folder / "packed"), str(folder / "run")
    pack = [
        "prepare",
        "--data",
        "csv",
        "--root",
        str(table),
        "--split",
        "train",
        "--size",
        str(SMALL),
        "--masks",
        "none",
    ]
    small = ["--architecture", "densenet-gap", "--backbone", "tiny", "--size", str(SMALL), "--epochs", "1"]
    limits = ["--batch-size", "512", "--workers", "1", "--accelerator", "cpu"]
    return {
        "films": count,
        "prepare, 1 worker": peak([*pack, "--workers", "1", "--out", out, "--quiet"]),
        "fit, 1 worker": peak(["fit", "--root", out, *small, *limits, "--out", run, "--quiet"]),
    }


def peak(arguments: list[str]) -> dict[str, Any]:
    """The largest memory of a command and the processes that it starts, in MiB.

    Together: their PSS, which counts a page that several have mapped once; largest process: its resident set.
    """
    code = "import sys; from axnet.cli import app; sys.argv[0] = 'axnet'; app(standalone_mode=False)"
    started = time.perf_counter()
    together = largest = 0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=errors, text=True
        )
        while process.poll() is None:
            used = [pages(number) for number in family(process.pid)]
            together = max(together, sum(shared for _, shared in used))
            largest = max([largest, *(own for own, _ in used)])
            time.sleep(2)  # to look at every page of several processes takes a while
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(errors.read()[-2000:])
    seconds = round(time.perf_counter() - started)
    return {"MiB together (PSS)": together // 1024, "MiB of the largest (RSS)": largest // 1024, "seconds": seconds}


def family(pid: int) -> list[int]:
    """A process and all that it started, that are alive."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = [int(each) for each in task.read_text().split()]
        except OSError:
            continue
        found += [each for child in below for each in family(child)]
    return found


def pages(pid: int) -> tuple[int, int]:
    """Largest resident set until now and PSS in KiB; zeros for a process that has ended."""
    try:
        text = "".join(Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "smaps_rollup"))
    except OSError:
        return 0, 0
    found = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.startswith(("VmHWM:", "Pss:"))}
    return int(found.get("VmHWM", 0)), int(found.get("Pss", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-films", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "packed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.memory:
            found = {"memory": {**memory(folder, arguments.memory_films), "environment": environment()}}
        else:
            found = {"speed": {**speed(folder, arguments.films, arguments.rounds), "environment": environment()}}
    record = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    arguments.out.write_text(json.dumps({**record, **found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
