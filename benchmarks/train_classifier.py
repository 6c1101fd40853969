"""Train a candidate of the shipped classifier on a CPU, in a given time.

    python benchmarks/comparison.py --pack films --nih-128 N128 --nih-subset NSUB --masks M128.parquet MSUB.parquet
    python benchmarks/train_classifier.py --films films --runs runs --minutes 24

AnatomyXNet on EfficientNet-Lite0 with ImageNet weights, on the training lists of nih_128 and nih_subset without the
patients of the validation part and of both test lists. The layers up to stride 8 keep their ImageNet weights (their
normalisation takes the statistics of films), so what they say of a few augmented versions of every film is computed
once, and the rest is trained on that. The learning rate follows the clock: the run ends when the time does, whatever
else the machine does. From 40 % of the time on, every epoch's averaged weights and validation logits are written as
runs/candidate-NAME.safetensors, .npz and .json, which benchmarks/ship_classifier.py takes.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from axnet.data import NIH_FINDINGS  # noqa: E402
from axnet.memory import keep_freed_memory  # noqa: E402
from axnet.models import save_classifier  # noqa: E402
from axnet.train.losses import bce_loss  # noqa: E402
from axnet.train.schedule import one_cycle  # noqa: E402
from benchmarks.comparison_films import MASK_SIDE, unpack  # noqa: E402
from benchmarks.comparison_jobs import Job, Recipe  # noqa: E402
from benchmarks.comparison_models import build  # noqa: E402
from benchmarks.comparison_train import (  # noqa: E402
    AUGMENTATIONS,
    LEAST,
    PREPROCESSING,
    Average,
    Data,
    descend,
    mean_auc,
    parameter_groups,
)

OPTIONS = {
    "axnet": {"reduction": 1 / 16, "num_maps": "classes", "head_dropout": 0.2},
    "gap": {"head_dropout": 0.2},
}
FROZEN = 6  # layers of EfficientNet-Lite0 up to stride 8


class Tail(nn.Module):
    """The layers of a StagedBackbone after the first few, on what those say of a film."""

    def __init__(self, backbone: Any, first: int) -> None:
        super().__init__()
        self.channels = backbone.channels
        self.layers = backbone.layers[first:]
        self.ends = tuple(end - first for end in backbone.ends)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.ends:
                maps.append(x)
        return maps


def adapt(stem: nn.Sequential, data: Data, rows: Tensor) -> None:
    """Give the first layers' normalisations the statistics of these films."""
    norms = [module for module in stem.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, kept = None, norm.momentum  # the plain mean over the batches
        norm.kept = kept
    stem.train()
    with torch.no_grad():
        for batch in rows.split(64):
            stem(PREPROCESSING.normalize(data.batch(batch, "own")[0]))
    for norm in norms:
        norm.momentum = norm.kept
    stem.eval()


@torch.no_grad()
def described(stem: nn.Sequential, data: Data, rows: Tensor, augment: Any) -> tuple[Tensor, Tensor]:
    """What the first layers say of films, and their masks moved alike: [N,40,16,16] and [N,2,32,32], bfloat16."""
    features, masks = [], []
    for batch in rows.split(64):
        image, mask = data.batch(batch, "own")
        if augment is not None:
            image, mask = augment(image, mask)
        ready = PREPROCESSING.normalize(image).contiguous(memory_format=torch.channels_last)
        features.append(stem(ready).to(torch.bfloat16))
        masks.append(nn.functional.adaptive_avg_pool2d(mask, MASK_SIDE).clamp(0, 1).to(torch.bfloat16))
    return torch.cat(features).contiguous(memory_format=torch.channels_last), torch.cat(masks)


def keep(
    out: Path, job: Job, model: nn.Module, full: nn.Module, average: Average, films: Any, record: dict[str, Any]
) -> None:
    """Write the averaged weights with what they answer on the validation part."""
    features, masks, labels = films
    plain = copy.deepcopy(model)
    average.put_into(plain)
    plain.eval()
    with torch.inference_mode():
        pairs = zip(features.split(128), masks.split(128), strict=True)
        logits = torch.cat([plain(x.float(), mask.float()).logits for x, mask in pairs]).numpy()
    record["validation_auc"] = mean_auc(labels, logits, LEAST)
    np.savez_compressed(out / f"{job.name}.npz", validation=logits)
    backbone: Any = copy.deepcopy(full)
    backbone.layers = nn.ModuleList([*backbone.layers[:FROZEN], *plain.backbone.layers])
    plain.backbone = backbone
    save_classifier(out / f"{job.name}.safetensors", plain.half(), PREPROCESSING, NIH_FINDINGS, training=record)
    (out / f"{job.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--masks", type=Path, help="masks.npz of an earlier run, for films packed without masks")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--model", choices=tuple(OPTIONS), default="axnet")
    parser.add_argument("--versions", type=int, default=3, help="of every film")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    deadline = time.time() + 60 * arguments.minutes
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    data = Data(unpack(arguments.films, 2, "cpu", arguments.masks), torch.device("cpu"))
    recipe = Recipe(lr=arguments.lr, part="both", ema=0.995)
    name = f"candidate-{arguments.model}128-s{arguments.seed}"
    job = Job(name, arguments.model, OPTIONS[arguments.model], recipe=recipe, seed=arguments.seed, weights=True)
    model = build(job, len(NIH_FINDINGS)).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    full = model.backbone
    stem = nn.Sequential(*full.layers[:FROZEN])
    rows = torch.from_numpy(data.parts[recipe.part])
    adapt(stem, data, rows[torch.randperm(len(rows))[:640]])
    began = time.time()
    checked = torch.from_numpy(data.parts["validation"])
    films = (*described(stem, data, checked, None), data.labels[checked].numpy())
    versions = []
    for _ in range(arguments.versions):
        versions.append(described(stem, data, rows, AUGMENTATIONS[recipe.augmentation]))
        print(f"version {len(versions)} after {time.time() - began:.0f} s", flush=True)
    labels = data.labels[rows]
    model.backbone = Tail(full, FROZEN)
    average = Average(model, recipe.ema)
    optimizer = torch.optim.AdamW(parameter_groups(model, job), lr=recipe.lr)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    step, epoch, progress, started = 0, 0, 0.0, time.time()
    while progress < 1:
        features, masks = versions[epoch % len(versions)]
        for batch in torch.randperm(len(rows))[: len(rows) // recipe.batch * recipe.batch].split(recipe.batch):
            progress = min((time.time() - started) / (deadline - started), 1.0)
            if progress == 1:
                break
            x = features[batch].float().contiguous(memory_format=torch.channels_last)
            loss = bce_loss(model(x, masks[batch].float()).logits, labels[batch])
            descend(loss, optimizer, recipe.lr * one_cycle(progress))
            step += 1
            average.update(step)
            if step % 20 == 0:
                print(f"{step} {progress:.3f} {float(loss.detach()):.4f} {time.time() - started:.0f} s", flush=True)
        epoch += 1
        record: dict[str, Any] = {
            "job": job.record(),
            "frozen": FROZEN,
            "versions": arguments.versions,
            "steps": step,
            "epochs": round(step / (len(rows) // recipe.batch), 2),
            "seconds": round(time.time() - began, 1),
            "progress": round(progress, 3),
            "finished": True,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "films": {part: len(found) for part, found in data.parts.items()},
        }
        if progress >= 0.4:
            state = replace(job, name=name.replace("-s", f"-e{epoch}-s"))
            keep(arguments.runs, state, model, full, average, films, record)
            print(f"epochs {record['epochs']} validation {record['validation_auc']:.4f}", flush=True)


if __name__ == "__main__":
    main()
