"""Train the segmenter that comes with axnet, and record what it reaches.

    python benchmarks/train_segmenter.py --organs wingspan_ctr --nih nih_subset

Labelled: the organ mask set's train part; unlabelled: NIH's train_val list. The validation part chooses the state; the
test part is measured once, at the end. --method supervised, --labels and --seed are for comparisons: give another --out
and --weights then. --measure takes weights that are there.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Subset

from axnet.data import ORGANS, OrganMaskSet, open_unlabelled
from axnet.report import environment
from axnet.segment import PRESETS, Segmenter, evaluate_segmenter, fit_segmenter
from axnet.segment.pretrained import WEIGHTS

RESULTS = Path(__file__).resolve().parent / "results"


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).astype(np.float32) / 255


def rotated(plane: np.ndarray, degrees: float) -> np.ndarray:
    return np.asarray(Image.fromarray(plane.astype(np.float32)).rotate(degrees, Image.Resampling.BILINEAR))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contrast x0.5": lambda x: 0.5 + (x - 0.5) * 0.5,
    "contrast x2": lambda x: (0.5 + (x - 0.5) * 2).clip(0, 1),
    "gamma 0.5": lambda x: x**0.5,
    "gamma 2": lambda x: x**2,
    "noise 0.05": lambda x: (x + np.random.default_rng(0).normal(0, 0.05, x.shape)).clip(0, 1).astype(np.float32),
    "10 degrees": lambda x: rotated(x, 10),
    "-10 degrees": lambda x: rotated(x, -10),
    "JPEG 30": lambda x: jpeg(x, 30),
    "inverted": lambda x: 1 - x,
}


class Changed:
    """A set whose images are changed; a rotation turns the masks with them."""

    def __init__(self, base: OrganMaskSet, name: str) -> None:
        self.base, self.name = base, name

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = dict(self.base[index])
        change = CHANGES[self.name]
        item["image"] = torch.from_numpy(np.array(change(item["image"][0].numpy()), dtype=np.float32))[None]
        if "degrees" in self.name:
            item["mask"] = torch.from_numpy(np.stack([change(plane) for plane in item["mask"].numpy()]))
            item["ctr"] = math.nan  # measured upright
        return item


def robustness(segmenter: Segmenter, test: OrganMaskSet) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in CHANGES:
        changed = Changed(test, name)
        result[name] = {organ: value["Dice"] for organ, value in evaluate_segmenter(segmenter, changed).items()}
        found = segmenter.predict([changed[i]["image"][0].numpy() for i in range(len(changed))])
        result[name]["flagged as inverted"] = sum("the grey values are inverted" in a.flags for a in found) / len(found)
    return result


def speed(segmenter: Segmenter, test: OrganMaskSet, seconds: float = 10.0) -> float:
    """Images per second at batch 8, 256 px, checks included."""
    images = [test[i]["image"][0].numpy() for i in range(8)]
    segmenter.predict(images)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        segmenter.predict(images)
        count += len(images)
    return count / (time.perf_counter() - started)


def flagged(segmenter: Segmenter, nih: Path) -> dict[str, Any]:
    """How many of all NIH films are flagged, and for what; shares of the image are left out of the flags' text."""
    files = sorted((nih / "images").iterdir())
    found = [anatomy.flags for anatomy in segmenter.predict(files)]
    kinds = Counter(
        re.sub(r"covers [\d.]+% of", "covers an implausible share of", flag) for flags in found for flag in flags
    )
    return {"films": len(files), "flagged": sum(map(bool, found)), "flags": dict(kinds.most_common())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organs", type=Path, required=True)
    parser.add_argument("--nih", type=Path, required=True)
    parser.add_argument("--method", choices=("mean-teacher", "supervised"), default="mean-teacher")
    parser.add_argument("--labels", type=int, help="train on the first so many labelled images")
    parser.add_argument("--coarse-epochs", type=int, default=90, help="at half the size, with masks alone")
    parser.add_argument("--epochs", type=int, default=42, help="at --size, after those at half of it")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="do not train: measure --weights")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "segmenter.json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    if not arguments.measure:
        train: Any = OrganMaskSet(arguments.organs, "train")
        train = train if arguments.labels is None else Subset(train, range(arguments.labels))
        segmenter: Segmenter | None = None
        for method, size, epochs, lr in (
            ("supervised", arguments.size // 2, arguments.coarse_epochs, 5e-3),
            (arguments.method, arguments.size, arguments.epochs, 2.5e-3),
        ):
            segmenter = fit_segmenter(
                train,
                OrganMaskSet(arguments.organs, "val"),
                open_unlabelled(arguments.nih) if method == "mean-teacher" else None,
                config=replace(PRESETS["standard"], size=size),
                init=segmenter,
                epochs=epochs,
                lr=lr,
                strength=0.4,
                seed=arguments.seed,
                out=arguments.out.with_name(f"{arguments.out.stem}-{size}.state"),
                resume=True,
                progress=False,
            )
        segmenter.training_record["seconds"] = time.perf_counter() - started
        arguments.weights.parent.mkdir(parents=True, exist_ok=True)
        segmenter.save(arguments.weights, half=True)
    segmenter = Segmenter.load(arguments.weights)
    test = OrganMaskSet(arguments.organs, "test")
    record = {
        "environment": environment(),
        "training": segmenter.training_record,
        "parameters": sum(p.numel() for p in segmenter.parameters()),
        "bytes": arguments.weights.stat().st_size,
        "organs": list(ORGANS),
        "test": evaluate_segmenter(segmenter, test),
        "robustness": robustness(segmenter, test),
        "images_per_second": speed(segmenter, test),
        "nih": flagged(segmenter, arguments.nih),
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: record[key] for key in ("test", "robustness", "images_per_second", "nih")}, indent=1))


if __name__ == "__main__":
    main()
