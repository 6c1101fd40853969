"""Training of the segmenter, on Lightning: with organ masks alone, or with unlabelled images besides."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from axnet.data.findings import ORGANS
from axnet.paths import StrPath
from axnet.precision import float32_by_default
from axnet.progress.training import bar
from axnet.segment.evaluation import OrganSet, evaluate_segmenter, organ_mask
from axnet.segment.learner import Learner, Shuffle
from axnet.segment.segmenter import ATLAS_SIDE, PRESETS, Segmenter, SegmenterConfig

STATE_NAME = "last.ckpt"
"""File of the training state in the folder that fit_segmenter is given."""


@float32_by_default()
def fit_segmenter(
    train: OrganSet | Dataset[Any],
    val: OrganSet | Dataset[Any] | None = None,
    unlabelled: Dataset[Any] | None = None,
    *,
    config: SegmenterConfig = PRESETS["small"],
    epochs: int = 60,
    max_steps: int | None = None,
    batch_size: int = 8,
    lr: float = 5e-3,
    augment: bool = True,
    mirror: float = 0.0,
    strength: float = 1.0,
    consistency: float = 1.0,
    ema: float = 0.99,
    init: Segmenter | None = None,
    seed: int = 0,
    out: StrPath | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
) -> Segmenter:
    """Train a U-Net on images with organ masks (OrganMaskSet or PhantomXray), and, as mean teacher, on some without.

    val: watched during training; the weights with its best mean Dice are returned, without it the last ones.
    unlabelled: data set whose items hold image [1, H, W] in [0, 1]; as many of its images as labelled ones are shown in
    every step, and the network has to draw on them what the mean of its weights draws (Learner describes the method).
    consistency: weight of that part of the loss. ema: decay of the mean of the weights, which is what is returned.
    init: segmenter whose weights the run begins with, of the same architecture but any size: most of a
    run can so be done at half the size, at a quarter of the cost, and films of one's own can follow ours.
    max_steps: ends the run before epochs do. augment: whether training images are moved and changed; mirror: chance
    of a left-right mirror among that; strength: how much of it, mirror too, the labelled images get. Those without
    masks get all of it: it makes a network robust, but costs exact outlines where labelled images get it too.
    out: folder for the training state after each epoch, from which resume=True continues (from the beginning where
    there is none yet) and reaches what the whole run would have reached. The rest as Lightning names it.
    Loss: Dice and binary cross-entropy of each organ.
    Returns the segmenter in eval mode on the CPU. Its training_record has method, unlabelled, seed, epochs, images, lr
    and history (loss per epoch, with val also Dice per organ), with val the epoch chosen and what evaluate_segmenter
    measures, and with init that segmenter's own record.
    Raises ValueError for an empty set, numbers out of range, resume without out, or a state that is damaged or that
    another run left.
    """
    _check_numbers(epochs=epochs, batch_size=batch_size, max_steps=max_steps, lr=lr)
    _check_shares(mirror=mirror, ema=ema, strength=strength)
    if not consistency >= 0:
        raise ValueError(f"consistency is {consistency}, expected 0 or more.")
    if resume and out is None:
        raise ValueError("resume needs out, the folder of the run to continue.")
    lightning.seed_everything(seed, verbose=False)
    segmenter = _begin(config, init).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, masks = _load(segmenter, train, "train")
    segmenter.atlas.copy_(F.adaptive_avg_pool2d(masks.float().mean(0) / 255, ATLAS_SIDE))
    others = None if unlabelled is None else _load_images(segmenter, unlabelled)
    run = {"config": asdict(config), "images": len(images), "batch_size": batch_size, "lr": lr, "seed": seed}
    run |= {"unlabelled": 0 if others is None else len(others), "init": None if init is None else _digest(init)}
    state = _state_to_resume(Path(out), run) if resume and out is not None else None
    steps = epochs * math.ceil(len(images) / batch_size)
    steps = steps if max_steps is None else min(steps, max_steps)
    learner = Learner(
        segmenter,
        steps=steps,
        lr=lr,
        mirror=mirror if augment else None,
        seed=seed,
        val=None if val is None else _load(segmenter, val, "val"),
        run=run,
        consistency=consistency,
        ema=ema,
        strength=strength,
    )
    callbacks: list[Callback] = []
    if out is not None:
        if state is None:
            Path(out, STATE_NAME).unlink(missing_ok=True)  # an earlier run's, not to be resumed as this one
        callbacks.append(_keeper(Path(out)))
    if progress:
        callbacks.append(bar())
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=steps,
            max_epochs=epochs,
            accelerator=accelerator,
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=out is not None,
            enable_progress_bar=progress,
            enable_model_summary=False,
        )
        loaders = {"labelled": _loader(TensorDataset(images, masks), batch_size, seed)}
        if others is not None:
            samples = math.ceil(len(images) / batch_size) * batch_size
            loaders["unlabelled"] = _loader(TensorDataset(others), batch_size, seed + 1, samples)
        train_loaders = loaders["labelled"] if others is None else loaders
        trainer.fit(learner, train_loaders, ckpt_path=state, weights_only=True)
    segmenter = learner.result().to(memory_format=torch.contiguous_format).cpu().eval()  # type: ignore[call-overload]
    segmenter.training_record = {
        "method": "supervised" if others is None else "mean teacher",
        "unlabelled": 0 if others is None else len(others),
        "seed": seed,
        "epochs": len(learner.history),
        "images": len(images),
        "lr": lr,
        "history": learner.history,
    }
    if init is not None:
        begun = {name: value for name, value in init.training_record.items() if name != "history"}
        segmenter.training_record["init"] = {"size": init.config.size, **begun}
    if val is not None:
        segmenter.training_record["best_epoch"] = learner.best_epoch
        segmenter.training_record["validation"] = evaluate_segmenter(segmenter, val)
    return segmenter


def _check_numbers(*, epochs: int, batch_size: int, max_steps: int | None, lr: float) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("max_steps", max_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more.")
    if not lr > 0:
        raise ValueError(f"lr is {lr}, expected a positive number.")


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected a number from 0 to 1.")


def _begin(config: SegmenterConfig, init: Segmenter | None) -> Segmenter:
    """A new network, with the weights of `init` where there is one."""
    segmenter = Segmenter(config)
    if init is not None:
        for name in ("channels", "residual_units", "norm"):
            wanted, given = getattr(config, name), getattr(init.config, name)
            if wanted != given:
                raise ValueError(f"init has {name} {given}, expected {wanted} as in config.")
        segmenter.load_state_dict(init.state_dict())
    return segmenter


def _digest(segmenter: Segmenter) -> str:
    """Name of its weights, by which a resumed run knows that it began with the same."""
    digest = hashlib.sha256()
    for value in segmenter.state_dict().values():
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _loader(data: TensorDataset, batch_size: int, seed: int, samples: int | None = None) -> DataLoader[Any]:
    # Without a generator the loader draws from torch's when an epoch begins, but not where a run resumes.
    order = Shuffle(len(data), seed, samples)
    return DataLoader(data, batch_size=batch_size, sampler=order, generator=torch.Generator())


def _keeper(out: Path) -> ModelCheckpoint:
    """Writes the training state after each epoch, always to the same file."""
    return ModelCheckpoint(
        dirpath=out,
        filename=Path(STATE_NAME).stem,
        save_top_k=1,  # with 0, Lightning writes nothing before the run ends, save_last or not
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _state_to_resume(out: Path, run: dict[str, Any]) -> Path | None:
    """The state to continue from, None where there is none yet; raises when it is cut or belongs to another run."""
    file = out / STATE_NAME
    if not file.is_file():
        return None
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)["run"]
    except Exception as error:  # torch raises its own kinds for a cut file, a foreign one, a pickle with code
        raise ValueError(f"training state '{file}' is damaged or was not written by fit_segmenter.") from error
    for name, value in run.items():
        if found.get(name) != value:
            raise ValueError(
                f"training state '{file}' is of a run with {name} {found.get(name)}, expected {value}; "
                "start again without resume."
            )
    return file


def _load(segmenter: Segmenter, dataset: OrganSet | Dataset[Any], name: str) -> tuple[Tensor, Tensor]:
    """All images and masks at the network's size, uint8 [N, 1, s, s] and [N, 3, s, s]."""
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise ValueError(f"{name} is empty, expected images with organ masks.")
    side = segmenter.config.size
    images = torch.empty((count, 1, side, side), dtype=torch.uint8)
    masks = torch.empty((count, len(ORGANS), side, side), dtype=torch.uint8)
    for index in range(count):
        item = dataset[index]
        mask = organ_mask(item).float()[None]
        if mask.shape[2:] != (side, side):
            mask = F.interpolate(mask, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        images[index] = _prepared(segmenter, item["image"])[0]
        masks[index] = (mask[0] * 255).round().to(torch.uint8)
    return images, masks


def _load_images(segmenter: Segmenter, dataset: Dataset[Any]) -> Tensor:
    """All unlabelled images at the network's size, uint8 [N, 1, s, s]."""
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise ValueError("unlabelled is empty, expected images.")
    return torch.cat([_prepared(segmenter, dataset[index]["image"]) for index in range(count)])


def _prepared(segmenter: Segmenter, image: Tensor) -> Tensor:
    return (segmenter.prepare(image[None].float()) * 255).round().to(torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice about devices and workers out of our own runs."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
