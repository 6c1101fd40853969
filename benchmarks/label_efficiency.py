"""How few films with masks suffice: supervised against mean teacher, at equal steps, and the plot of it.

    python benchmarks/label_efficiency.py --organs wingspan_ctr --nih nih_subset
    python benchmarks/label_efficiency.py --plot-only     # no runs

A run trains on so many films of the organ mask set's train part, drawn by its seed; a mean teacher sees the rest of the
train part and NIH's train_val list without masks. No film chooses anything: the last state is measured, on the test
part. Each run is written as soon as it ends, and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from axnet.data import ORGANS, OrganMaskSet, open_unlabelled
from axnet.report import environment
from axnet.segment import SegmenterConfig, evaluate_segmenter, fit_segmenter

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("supervised", "mean teacher")
COUNTS, SEEDS = (10, 150, 5, 20, 50), (0, 1, 2)  # 150: all that there are, which bounds what the others can gain
SETTINGS: dict[str, Any] = {"batch_size": 8, "lr": 5e-3, "strength": 0.4, "max_steps": 800}


class Cached(Dataset[dict[str, Any]]):
    """The items of a set, read once."""

    def __init__(self, base: Any) -> None:
        self.items = [base[index] for index in range(len(base))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def run(method: str, labels: int, seed: int, sets: dict[str, Any], size: int) -> dict[str, Any]:
    started = time.perf_counter()
    order = np.random.default_rng(seed).permutation(len(sets["train"])).tolist()
    rest = Subset(sets["train"], order[labels:])
    segmenter = fit_segmenter(
        Subset(sets["train"], order[:labels]),
        unlabelled=ConcatDataset([rest, sets["nih"]]) if method == "mean teacher" else None,
        config=SegmenterConfig(size=size, norm="instance"),
        epochs=SETTINGS["max_steps"],
        seed=seed,
        progress=False,
        **SETTINGS,
    )
    seconds = time.perf_counter() - started
    dice = {organ: value["Dice"] for organ, value in evaluate_segmenter(segmenter, sets["test"]).items()}
    return {"method": method, "labels": labels, "seed": seed, "seconds": seconds, **dice}


def mean_dice(record: dict[str, Any], method: str, labels: int) -> list[float]:
    """Mean Dice over the organs, seed by seed."""
    runs = [r for r in record["runs"] if r["method"] == method and r["labels"] == labels]
    return [sum(r[organ] for organ in ORGANS) / len(ORGANS) for r in sorted(runs, key=lambda r: r["seed"])]


def plot(record: dict[str, Any], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method, mark in zip(METHODS, ("o--", "s-"), strict=True):
        counts = [n for n in sorted(COUNTS) if mean_dice(record, method, n)]
        values = [mean_dice(record, method, n) for n in counts]
        (line,) = axes.plot(counts, [np.mean(v) for v in values], mark, label=method)
        for n, seeds in zip(counts, values, strict=True):
            axes.plot([n] * len(seeds), seeds, ".", color=line.get_color(), alpha=0.5)
    axes.set_xscale("log")
    axes.set_xticks(sorted(COUNTS), [str(n) for n in sorted(COUNTS)])
    axes.minorticks_off()
    axes.set_xlabel("films with masks")
    axes.set_ylabel("mean Dice of the three organs, 40 test films")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organs", type=Path)
    parser.add_argument("--nih", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "label_efficiency.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "label_efficiency.png")
    parser.add_argument("--plot-only", action="store_true", help="no runs: draw what --out holds")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not arguments.plot_only:
        if arguments.organs is None or arguments.nih is None:
            parser.error("--organs and --nih are needed, expected the folders of the two data sets")
        record = {"environment": environment(), "size": arguments.size, "settings": SETTINGS, "runs": []}
        if arguments.out.is_file():
            record = json.loads(arguments.out.read_text(encoding="utf-8"))
            if (record["size"], record["settings"]) != (arguments.size, SETTINGS):
                parser.error(f"--out {arguments.out} holds runs of other settings, expected another file")
        done = {(r["method"], r["labels"], r["seed"]) for r in record["runs"]}
        sets = {
            "train": Cached(OrganMaskSet(arguments.organs, "train")),
            "test": Cached(OrganMaskSet(arguments.organs, "test")),
            "nih": Cached(open_unlabelled(arguments.nih)),
        }
        # Ten films with all seeds first, then the curve seed by seed.
        order = sorted(((n, s) for n in COUNTS for s in SEEDS), key=lambda pair: (pair[0] != COUNTS[0], pair[1]))
        for labels, seed, method in ((*pair, method) for pair in order for method in METHODS):
            if (method, labels, seed) not in done:
                record["runs"].append(run(method, labels, seed, sets, arguments.size))
                arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                print(json.dumps(record["runs"][-1]), flush=True)
    plot(json.loads(arguments.out.read_text(encoding="utf-8")), arguments.figure)


if __name__ == "__main__":
    main()
