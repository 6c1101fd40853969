"""Train a candidate of the shipped classifier on one core of a CPU, in a given time.

    python benchmarks/comparison.py --pack films --nih-128 N128 --nih-subset NSUB --masks M128.parquet MSUB.parquet
    python benchmarks/train_classifier.py --films films --runs runs --minutes 45 --size 160

The whole of EfficientNet-Lite0 with ImageNet weights and what axnet puts on it, on the training lists of nih_128 and
nih_subset without the patients of the validation part and of both test lists. The learning rate follows the clock: the
run ends when the time does, whatever else the machine does. From 40 % of the time on, every epoch's averaged weights
and validation AUC are written as runs/candidate-NAME.safetensors and .json, which benchmarks/ship_classifier.py takes.
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

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from axnet.data import NIH_FINDINGS  # noqa: E402
from axnet.memory import keep_freed_memory  # noqa: E402
from axnet.models import save_classifier  # noqa: E402
from axnet.train.augment import Augmentation  # noqa: E402
from axnet.train.losses import bce_loss  # noqa: E402
from axnet.train.mixing import mixed  # noqa: E402
from axnet.train.schedule import one_cycle  # noqa: E402
from benchmarks.comparison_films import unpack  # noqa: E402
from benchmarks.comparison_jobs import Job, Recipe  # noqa: E402
from benchmarks.comparison_models import build  # noqa: E402
from benchmarks.comparison_train import (  # noqa: E402
    ADAPTED,
    LEAST,
    PREPROCESSING,
    Average,
    Data,
    adapt,
    descend,
    logits_of,
    mean_auc,
    parameter_groups,
    softened,
)
from benchmarks.ship_classifier import average as mean_of  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {
    "axnet": {"reduction": 1 / 16, "num_maps": "classes", "head_dropout": 0.2},
    "gap": {"head_dropout": 0.2},
}
SOFTEST = 0.6  # pixels: films come as sharp as nih_128's and as soft as what a triangle filter or a turn leaves
AUGMENTATION = Augmentation(degrees=15, translate=0.1, scale=0.2, contrast=0.4, flip=0.5, moved=0.5, blur=SOFTEST)
AS_READ = Augmentation(degrees=0, translate=0, scale=0, contrast=0, blur=SOFTEST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--masks", type=Path, help="masks.npz of an earlier run, for films packed without masks")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--model", choices=tuple(OPTIONS), default="axnet")
    parser.add_argument("--size", type=int, default=128, help="side the films are resized to inside the network")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--weight-decay", type=float, default=2e-2)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--mixup", type=float, default=0.0, help="alpha of the Beta distribution")
    parser.add_argument("--swap", type=float, default=0.0, help="share of the films that get another patient's masks")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the augmentation; the head's is 0")
    parser.add_argument("--begin", type=Path, nargs="+", help="from the mean of these candidates, not ImageNet")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    deadline = time.time() + 60 * arguments.minutes
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device("cpu")
    data = Data(unpack(arguments.films, 2, "cpu", arguments.masks), device)
    recipe = Recipe(
        batch=arguments.batch,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        ema=arguments.ema,
        size=arguments.size,
        part="both",
        augmentation="strong, flip",
    )
    kind = f"{arguments.model}{arguments.size}" + (f"m{arguments.mixup:g}" if arguments.mixup else "")
    kind += f"w{arguments.swap:g}" if arguments.swap else ""
    name = f"candidate-{kind}-s{arguments.seed}"
    job = Job(name, arguments.model, OPTIONS[arguments.model], recipe=recipe, seed=arguments.seed, weights=True)
    model = build(job, len(NIH_FINDINGS)).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    rows = torch.from_numpy(data.parts[recipe.part])
    some = rows[torch.randperm(len(rows))[:ADAPTED]]
    if arguments.begin:
        model.load_state_dict(mean_of(arguments.begin).state_dict())
        adapt(model, data, some, changed=AS_READ)
        model.train()
    torch.manual_seed(arguments.seed)
    average = Average(model, recipe.ema)
    optimizer = torch.optim.AdamW(parameter_groups(model, job), lr=recipe.lr)
    validation = data.parts["validation"]
    soft = softened(data)
    labels = data.labels[torch.from_numpy(validation)].numpy()
    steps_per_epoch = len(rows) // recipe.batch
    arguments.runs.mkdir(parents=True, exist_ok=True)
    step, epoch, progress, started = 0, 0, 0.0, time.time()
    while progress < 1:
        for batch in rows[torch.randperm(len(rows))[: steps_per_epoch * recipe.batch]].split(recipe.batch):
            progress = min((time.time() - started) / (deadline - started), 1.0)
            if progress == 1:
                break
            image, mask = data.batch(batch, "own")
            if arguments.swap:
                swapped = torch.rand(len(batch)) < arguments.swap
                mask[swapped] = data.batch(batch[swapped], "other")[1]
            image, mask = AUGMENTATION(image, mask)
            films = {"image": image, "mask": mask, "label": data.labels[batch]}
            if arguments.mixup:
                films = mixed(films, arguments.mixup)
            ready = PREPROCESSING.normalize(films["image"]).contiguous(memory_format=torch.channels_last)
            loss = bce_loss(model(ready, films["mask"]).logits, films["label"])
            descend(loss, optimizer, recipe.lr * one_cycle(progress))
            step += 1
            average.update(step)
            if step % 20 == 0:
                print(f"{step} {progress:.3f} {float(loss.detach()):.4f} {time.time() - started:.0f} s", flush=True)
        epoch += 1
        if progress < 0.4:
            continue
        plain = copy.deepcopy(model)
        average.put_into(plain)
        adapt(plain, data, some, changed=AS_READ)
        record: dict[str, Any] = {
            "job": job.record(),
            "mixup": arguments.mixup,
            "swapped masks": arguments.swap,
            "began with": {
                file.stem: json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
                for file in arguments.begin or ()
            },
            "steps": step,
            "epochs": round(step / steps_per_epoch, 2),
            "seconds": round(time.time() - started, 1),
            "progress": round(progress, 3),
            "finished": True,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "films": {part: len(found) for part, found in data.parts.items()},
            "validation_auc": mean_auc(labels, logits_of(plain, data, validation, "own", device), LEAST),
            "validation_auc, soft": mean_auc(labels, logits_of(plain, soft, validation, "own", device), LEAST),
        }
        state = replace(job, name=name.replace("-s", f"-e{epoch}-s"))
        file = arguments.runs / f"{state.name}.safetensors"
        save_classifier(file, plain.half(), PREPROCESSING, NIH_FINDINGS, training=record)
        file.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        both = f"{record['validation_auc']:.4f}, soft films {record['validation_auc, soft']:.4f}"
        print(f"epochs {record['epochs']} validation {both}", flush=True)


if __name__ == "__main__":
    main()
