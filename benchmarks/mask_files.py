"""What writing masks costs `axnet segment predict`, and how fast they are read: one Parquet file against PNG files.

python benchmarks/mask_files.py --images nih_subset/images
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from axnet.data import ORGANS, MaskTable
from axnet.report import environment
from axnet.segment import load_pretrained
from axnet.segment.output import PngFolder, Sink, TableSink

RESULTS = Path(__file__).resolve().parent / "results"


def rate(films: int, started: float) -> float:
    return films / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--films", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3, help="the best counts: others may use the machine")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "mask_files.json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    files = sorted(arguments.images.iterdir())[: arguments.films]
    segmenter = load_pretrained()
    segmenter.predict(files[:8])
    written: dict[str, list[float]] = {"none": [], "Parquet": [], "PNG": []}
    read: dict[str, list[float]] = {"Parquet": [], "PNG": []}
    size: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            table, pngs = Path(folder, f"{number}.parquet"), Path(folder, str(number))
            makers: dict[str, Any] = {"none": lambda: None, "Parquet": lambda t=table: TableSink(t)}
            makers["PNG"] = lambda p=pngs: PngFolder(p)
            for kind, make in makers.items():
                started = time.perf_counter()
                sink: Sink | None = make()
                for first in range(0, len(files), 8):
                    batch = files[first : first + 8]
                    for file, anatomy in zip(batch, segmenter.predict(batch), strict=True):
                        if sink is not None:
                            sink.add(file.name, anatomy)
                    if sink is not None:
                        sink.flush()
                if sink is not None:
                    sink.finish()
                written[kind].append(rate(len(files), started))
            started = time.perf_counter()
            masks = MaskTable(table)
            found = [masks.masks(file.name) for file in files]
            read["Parquet"].append(rate(len(files), started))
            started = time.perf_counter()
            drawn = [[np.asarray(Image.open(pngs / organ / f"{f.stem}.png")) for organ in ORGANS] for f in files]
            read["PNG"].append(rate(len(files), started))
            for one, other in zip(found, drawn, strict=True):
                assert np.array_equal(one > 0, np.stack(other) > 0), "the two hold different masks"
            size = {"Parquet": table.stat().st_size, "PNG": sum(p.stat().st_size for p in pngs.glob("*/*.png"))}
    record = {
        "environment": environment(),
        "films": len(files),
        "films a second, predicted and written": {kind: max(rates) for kind, rates in written.items()},
        "films a second, three masks read": {kind: max(rates) for kind, rates in read.items()},
        "bytes": size,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
