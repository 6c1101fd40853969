"""One run of the comparison, with films, augmentation and training on one device; and the worker that does many."""

from __future__ import annotations

import copy
import json
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import axnet.environment
from axnet.data import NIH_FINDINGS
from axnet.memory import keep_freed_memory
from axnet.metrics import mean_auc as mean_of
from axnet.models import Preprocessing, save_classifier
from axnet.train.augment import Augmentation
from axnet.train.losses import bce_loss
from axnet.train.precise_bn import precise_bn
from axnet.train.schedule import one_cycle
from benchmarks.comparison_films import Films, load
from benchmarks.comparison_jobs import PLANS, Job
from benchmarks.comparison_models import activation, build

PREPROCESSING = Preprocessing(size=128, mean=0.5, std=0.5)  # as EfficientNet-Lite's ImageNet weights expect
AUGMENTATIONS = {
    "none": None,
    "default": Augmentation(),
    "half": Augmentation(moved=0.5),
    "strong": Augmentation(degrees=15, translate=0.1, scale=0.2, contrast=0.4),
}
ADAPTED = 640  # films that give the normalisations their statistics
EVALUATED = ("validation", "test", "subset_test")
LEAST = 8  # positives on the validation part for a finding to count in what chooses


class Data:
    """The films on the device: uint8 images and masks, labels, rows of the parts."""

    def __init__(self, films: Films, device: torch.device, limit: int | None = None) -> None:
        self.images = torch.from_numpy(films.images).to(device)[:, None]
        self.masks = torch.from_numpy(films.masks).to(device)
        self.labels = torch.from_numpy(films.labels).to(device)
        self.parts = {name: rows[:limit] for name, rows in films.parts().items()}
        # masks of another patient: half the films further in the order of patients
        self.other = np.arange(len(films.labels))
        patients = films.table["patient"].to_numpy()
        for rows in films.parts().values():
            order = rows[np.argsort(patients[rows], kind="stable")]
            shifted = np.roll(order, len(order) // 2)
            assert (patients[order] != patients[shifted]).all()
            self.other[order] = shifted
        self.other_rows = torch.from_numpy(self.other).to(device)

    def batch(self, rows: Tensor, masks: str) -> tuple[Tensor, Tensor]:
        """Images float32 [B,1,128,128] and masks float32 [B,2,128,128] in [0,1]."""
        image = self.images[rows].float() / 255
        if masks == "whole":
            return image, image.new_ones(len(rows), 2, *image.shape[2:])
        drawn = self.masks[self.other_rows[rows] if masks == "other" else rows].float() / 255
        return image, F.interpolate(drawn, image.shape[2:], mode="bilinear", align_corners=False)


def softened(data: Data) -> Data:
    """The same films, as soft as the triangle filter of axnet.imaging.resize leaves larger ones."""
    soft = copy.copy(data)
    weight = torch.tensor([1.0, 8.0, 1.0]) / 10
    around = F.pad(data.images.float(), (1, 1, 1, 1), mode="replicate")
    soft.images = F.conv2d(around, weight.outer(weight)[None, None]).round().to(torch.uint8)
    return soft


def parameter_groups(model: nn.Module, job: Job) -> list[dict[str, Any]]:
    """By decay, and A3's gates apart; "rate" is the share of the learning rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim > 1 and not name.endswith("bias")
        gate = "hidden_" in name or "gate_" in name
        groups.setdefault((decayed, gate), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": job.recipe.weight_decay if decayed else 0.0,
            "rate": job.recipe.gate_lr if gate else 1.0,
        }
        for (decayed, gate), parameters in groups.items()
    ]


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One step of the optimizer, at lr times the rate of each group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
    optimizer.step()


def train(job: Job, data: Data, device: torch.device, deadline: float) -> tuple[nn.Module, dict[str, Any]]:
    """The trained model in eval mode, and what happened; it stops at the deadline (of time.time)."""
    recipe = job.recipe
    torch.manual_seed(job.seed)
    model = build(job, len(NIH_FINDINGS)).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = Average(model, recipe.ema)
    rows = torch.from_numpy(data.parts[recipe.part])
    steps_per_epoch = len(rows) // recipe.batch
    steps = recipe.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(parameter_groups(model, job), lr=recipe.lr, fused=device.type == "cuda")
    augment = AUGMENTATIONS[recipe.augmentation]
    drawer = torch.Generator().manual_seed(job.seed)
    losses, step, started = [], 0, time.perf_counter()
    for _ in range(recipe.epochs):
        order = rows[torch.randperm(len(rows), generator=drawer)].to(device)
        for batch in order[: steps_per_epoch * recipe.batch].split(recipe.batch):
            image, mask = data.batch(batch, job.masks)
            if augment is not None:
                image, mask = augment(image, mask)
            label = data.labels[batch] * (1 - recipe.smoothing) + recipe.smoothing / 2
            ready = PREPROCESSING.normalize(image).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(ready, mask).logits
            loss = bce_loss(logits.float(), label)
            descend(loss, optimizer, recipe.lr * one_cycle(step / steps))
            step += 1
            average.update(step)
        losses.append(loss.detach())
        if time.time() > deadline:
            break
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    average.put()
    return model.eval(), {
        "seconds": seconds,
        "steps": step,
        "finished": step == steps,
        "losses": [round(float(value), 5) for value in losses],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


class Average:
    """Exponential average of a model's weights and statistics; None for decay keeps the last ones."""

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.current = [value for value in model.state_dict().values() if value.is_floating_point()]
        self.mean = [value.clone() for value in self.current]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After so many steps; it forgets faster at first."""
        if self.decay is not None:
            torch._foreach_lerp_(self.mean, self.current, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def put_into(self, model: nn.Module) -> None:
        """Into another model of the same kind."""
        state = [value for value in model.state_dict().values() if value.is_floating_point()]
        torch._foreach_copy_(state, self.mean if self.decay is not None else self.current)

    @torch.no_grad()
    def put(self) -> None:
        """Into the model."""
        if self.decay is not None:
            torch._foreach_copy_(self.current, self.mean)


def adapt(model: nn.Module, data: Data, rows: Tensor, masks: str = "own", changed: Augmentation | None = None) -> None:
    """Give the normalisations the statistics of films as they are tested: what trained them was moved, and so blurred.

    changed: how films as they are tested differ from those of data. The model is in eval mode afterwards.
    """

    def films() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in rows.split(64):
            image, mask = data.batch(batch, masks)
            if changed is not None:
                image, mask = changed(image, mask)
            yield PREPROCESSING.normalize(image).contiguous(memory_format=torch.channels_last), mask

    precise_bn(model, films())


@torch.inference_mode()
def logits_of(model: nn.Module, data: Data, rows: np.ndarray, masks: str, device: torch.device) -> np.ndarray:
    """Logits float32 [N,14] in float32 arithmetic."""
    found = []
    for chunk in torch.from_numpy(rows).to(device).split(256):
        image, mask = data.batch(chunk, masks)
        found.append(model(PREPROCESSING.normalize(image), mask).logits.float())
    return torch.cat(found).cpu().numpy()


def mean_auc(labels: np.ndarray, logits: np.ndarray, least: int) -> float:
    """Over the findings with at least so many positives (of fewer where none has)."""
    counts = labels.sum(0)
    kept = counts >= min(least, counts.max())
    return mean_of(labels[:, kept], logits[:, kept])


def run(job: Job, data: Data, device: torch.device, deadline: float, out: Path) -> None:
    """Train, score the parts, and write NAME.npz, NAME.json and where asked NAME.safetensors."""
    model, record = train(job, data, device, deadline)
    arrays: dict[str, np.ndarray] = {}
    for part in EVALUATED:
        arrays[part] = logits_of(model, data, data.parts[part], job.masks, device)
    boxed = data.parts["test"] if "boxed" not in data.parts else data.parts["boxed"]
    with torch.inference_mode():
        image, mask = data.batch(torch.from_numpy(boxed).to(device), job.masks)
        arrays["maps"] = activation(model, PREPROCESSING.normalize(image), mask).half().cpu().numpy()
    labels = data.labels.cpu().numpy()
    adapted = copy.deepcopy(model)
    rows = torch.from_numpy(data.parts[job.recipe.part])
    adapt(adapted, data, rows[torch.randperm(len(rows))[:ADAPTED]].to(device), job.masks)
    for part in ("validation", "test"):
        arrays[f"{part}, adapted"] = logits_of(adapted, data, data.parts[part], job.masks, device)
    if job.weights:
        save_classifier(
            out / f"{job.name}.safetensors",
            model.cpu().half(),  # half the size; what it then computes is verified
            PREPROCESSING,
            NIH_FINDINGS,
            training={"job": job.record(), **record},
        )
    record |= {
        "job": job.record(),
        "validation_auc": mean_auc(labels[data.parts["validation"]], arrays["validation"], LEAST),
        "test_auc": mean_auc(labels[data.parts["test"]], arrays["test"], 15),
        "adapted": {
            "validation_auc": mean_auc(labels[data.parts["validation"]], arrays["validation, adapted"], LEAST),
            "test_auc": mean_auc(labels[data.parts["test"]], arrays["test, adapted"], 15),
        },
        "films": {name: len(rows) for name, rows in data.parts.items()},
        "environment": axnet.environment.info() | {"commit": os.environ.get("AXNET_COMMIT", "")},
    }
    partial = out / f"{job.name}.partial.npz"
    np.savez_compressed(partial, **arrays)
    partial.replace(out / f"{job.name}.npz")
    text = out / f"{job.name}.json.partial"
    text.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text.replace(out / f"{job.name}.json")


def resolved(job: Job, out: Path) -> Job | None:
    """The job with the learning rate that validated best; None while one of the runs that tell is missing."""
    if not job.rates:
        return job
    found = []
    for name in job.rates:
        file = out / f"{name}.json"
        if not file.is_file():
            if (out / f"{name}.error").is_file():
                continue
            return None
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["finished"]:
            found.append((record["validation_auc"], record["job"]["recipe"]["lr"]))
    if not found:
        return None
    return replace(job, recipe=replace(job.recipe, lr=max(found)[1]))


def work(out: Path, device_name: str, deadline: float, plan: str) -> None:
    """Take runs that nobody has taken, until none is left or the time is over."""
    device = torch.device(device_name)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # evaluation; training is bfloat16
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.zeros(1, device=device)  # the device's context, while the films are unpacked
    while not (out / "films" / "table.parquet").is_file():
        time.sleep(0.1)
    films = load(out / "films")
    data = Data(films, device, limit=24 if plan == "quick" else None)
    boxed = films.table["boxed"].to_numpy()
    data.parts["boxed"] = np.array([row for row in data.parts["test"] if boxed[row]], dtype=np.intp)
    todo = PLANS[plan]()
    pace = 0.0  # seconds per thousand passes
    while time.time() < deadline:
        waiting = False
        for job in todo:
            if (out / f"{job.name}.json").is_file() or (out / f"{job.name}.taken").exists():
                continue
            ready = resolved(job, out)
            if ready is None:
                waiting = True
                continue
            if time.time() + 0.9 * pace * job.cost() > deadline:
                continue
            try:
                os.close(os.open(out / f"{job.name}.taken", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            started = time.time()
            try:
                run(ready, data, device, deadline, out)
                pace = (time.time() - started) / job.cost()
                print(f"{time.strftime('%X')} {job.name} {time.time() - started:.1f} s", flush=True)
            except Exception:
                (out / f"{job.name}.error").write_text(traceback.format_exc(), encoding="utf-8")
                print(f"{job.name} failed: {traceback.format_exc().splitlines()[-1]}", flush=True)
            break
        else:
            if not waiting:
                return
            time.sleep(0.2)
