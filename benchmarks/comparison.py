"""Does anatomy pay on real films: eight models, three seeds, one budget; variations; candidates of the shipped model.

    python benchmarks/comparison.py --pack films --nih-128 nih_128 --nih-subset nih_subset
    python benchmarks/comparison.py --films films --out runs --jobs 8 --seconds 150
    AXNET_BACKEND=native python benchmarks/comparison.py --films films --out runs --jobs 2 --plan short --device cpu

--pack puts the films of both sets into a few files that travel, with masks that `axnet segment predict` drew where
--masks names them; else the shipped segmenter draws them when they are unpacked. A run's result is written when it is
there, so whatever ends the training loses only what is in progress; the same command goes on with the rest. --tar
collects the results in a few files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks.comparison_jobs import PLANS  # noqa: E402


def start(arguments: argparse.Namespace, worker: int, deadline: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--worker", str(deadline), "--out", str(arguments.out)]
    command += ["--device", arguments.device, "--plan", arguments.plan]
    threads = {"OMP_NUM_THREADS": str(arguments.threads), "AXNET_BACKEND": os.environ.get("AXNET_BACKEND", "reference")}
    with (arguments.out / f"worker-{worker}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **threads})


def commit() -> str:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def train(arguments: argparse.Namespace) -> None:
    """Start the workers, which wait for the films, and see them end."""
    began = time.time()
    deadline = began + arguments.seconds - 6  # to score, to write and to pack
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for left in (*out.glob("*.taken"), *out.glob("*.partial*"), *out.glob("*.error")):
        left.unlink()
    os.environ.setdefault("AXNET_COMMIT", commit())
    workers = [start(arguments, index, deadline) for index in range(arguments.jobs)]
    if not (out / "films" / "table.parquet").is_file():
        from benchmarks.comparison_films import save, unpack

        save(unpack(arguments.films, os.cpu_count() or 1, arguments.device), out / "films")
    print(f"films after {time.time() - began:.1f} s", flush=True)
    for worker in workers:
        try:
            worker.wait(timeout=max(1.0, began + arguments.seconds - 2 - time.time()))
        except subprocess.TimeoutExpired:
            worker.kill()
    summary(out, time.time() - began)


def summary(out: Path, seconds: float) -> None:
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))]
    for row in rows:
        name, done = row["job"]["name"], "" if row["finished"] else " (not finished)"
        scores = f"validation {row['validation_auc']:.4f}  test {row['test_auc']:.4f}"
        print(f"{name:32} {scores}  lr {row['job']['recipe']['lr']:g}  {row['seconds']:.1f} s{done}")
    failed = sorted(out.glob("*.error"))
    for file in failed:
        print(f"{file.name}: {file.read_text(encoding='utf-8').strip().splitlines()[-1]}")
    print(f"{len(rows)} runs, {len(failed)} failed, {seconds:.0f} s")


def collect(out: Path, folder: Path, largest: float = 15.0) -> None:
    """Put the results in tar files of at most so many MiB: predictions and logs, and the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    masks = np.load(out / "films" / "masks.npy")
    np.savez_compressed(out / "masks.npz", masks=masks)  # of the films in the order of their names
    small = [file for file in out.iterdir() if file.suffix in (".json", ".npz", ".log", ".error")]
    boxes: list[list[Path]] = [small]
    room = 0.0
    for file in sorted(out.glob("*.safetensors"), key=lambda file: file.stat().st_size):
        size = file.stat().st_size / 2**20 + 0.02
        if size > room:
            boxes.append([])
            room = largest
        boxes[-1].append(file)
        room -= size
    for index, files in enumerate(boxes):
        with tarfile.open(folder / f"comparison-{index}.tar", "w") as archive:
            for file in sorted(files):
                archive.add(file, file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="write the films here, and end")
    parser.add_argument("--nih-128", type=Path, help="NIH's films at 128 px, with the official lists")
    parser.add_argument("--nih-subset", type=Path, help="more of NIH's films")
    parser.add_argument("--masks", type=Path, nargs=2, help="tables of masks of the two sets")
    parser.add_argument("--parts", type=int, default=5, help="files to pack into")
    parser.add_argument("--films", type=Path, help="folder that --pack wrote")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=8, help="processes side by side")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--seconds", type=float, default=1e6, help="end after so many")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--plan", choices=sorted(PLANS), default="full", help="short: for a CPU; quick: a few films")
    parser.add_argument("--tar", type=Path, metavar="FOLDER", help="also write the results as tar files here")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pack is not None:
        from benchmarks.comparison_films import pack

        for file in pack(arguments.nih_128, arguments.nih_subset, arguments.masks, arguments.pack, arguments.parts):
            print(f"{file}  {file.stat().st_size / 2**20:.1f} MiB")
    elif arguments.worker is not None:
        from benchmarks.comparison_train import work

        work(arguments.out, arguments.device, arguments.worker, arguments.plan)
    else:
        train(arguments)
        if arguments.tar is not None:
            collect(arguments.out, arguments.tar)


if __name__ == "__main__":
    main()
