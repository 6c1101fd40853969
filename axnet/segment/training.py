"""Supervised training of the segmenter, on Lightning."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from axnet.checkpoint import StrPath
from axnet.data.findings import ORGANS
from axnet.segment.evaluation import OrganSet, evaluate_segmenter, organ_mask
from axnet.segment.segmenter import PRESETS, Segmenter, SegmenterConfig


def fit_segmenter(
    train: OrganSet | Dataset[Any],
    val: OrganSet | Dataset[Any] | None = None,
    *,
    config: SegmenterConfig = PRESETS["small"],
    epochs: int = 60,
    batch_size: int = 8,
    lr: float = 5e-3,
    seed: int = 0,
    out: StrPath | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
) -> Segmenter:
    """Train a U-Net on images with organ masks (OrganMaskSet or PhantomXray).

    val: measured once at the end, for the record. out: folder for checkpoints of the training state, from which
    resume=True continues. The rest as Lightning names it. Loss: Dice + cross-entropy per organ; augmentation moves
    image and masks together and never mirrors: the side of the heart tells left from right.
    Returns the segmenter in eval mode on the CPU; training_record has seed, epochs and, with val, its Dice.
    Raises ValueError for an empty set, numbers out of range or resume without out.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more.")
    if resume and out is None:
        raise ValueError("resume needs out, the folder of the run to continue.")
    lightning.seed_everything(seed, verbose=False)
    segmenter = Segmenter(config)
    images, masks = _load(segmenter, train)
    steps = epochs * math.ceil(len(images) / batch_size)
    loader = DataLoader(
        TensorDataset(images, masks),
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    state = (
        ModelCheckpoint(dirpath=Path(out), filename="segmenter-{epoch}", save_last=True, save_top_k=0) if out else None
    )
    last = Path(out) / "last.ckpt" if out else None
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator=accelerator,
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            logger=False,
            callbacks=[state] if state else [],
            enable_checkpointing=state is not None,
            enable_progress_bar=progress,
            enable_model_summary=False,
        )
        trainer.fit(
            _Training(segmenter, steps, lr),
            loader,
            ckpt_path=str(last) if resume and last is not None and last.is_file() else None,
            weights_only=True,
        )
    segmenter = segmenter.cpu().eval()
    segmenter.training_record = {"seed": seed, "epochs": epochs, "images": len(images), "lr": lr}
    if val is not None:
        segmenter.training_record["validation"] = evaluate_segmenter(segmenter, val)
    return segmenter


class _Training(lightning.LightningModule):
    def __init__(self, segmenter: Segmenter, steps: int, lr: float) -> None:
        from monai.losses.dice import DiceCELoss

        super().__init__()
        self.segmenter = segmenter
        self.steps = steps
        self.lr = lr
        self.loss = DiceCELoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        image, mask = _augment(batch[0].float() / 255, batch[1].float() / 255)
        loss: Tensor = self.loss(self.segmenter(self.segmenter.prepare(image)), mask)
        self.log("loss", loss, prog_bar=True)
        return loss

    def _rate(self, step: int) -> float:
        """One cycle: up in a fifth of the steps, down along a cosine; a resumed run may be longer than the first."""
        rise = max(1, self.steps // 5)
        if step < rise:
            return 0.04 + 0.96 * step / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, self.steps - rise))))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _load(segmenter: Segmenter, dataset: OrganSet | Dataset[Any]) -> tuple[Tensor, Tensor]:
    """All images and masks at the network's size, uint8 [N, 1, s, s] and [N, 3, s, s]."""
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise ValueError("train is empty, expected images with organ masks.")
    side = segmenter.config.size
    images = torch.empty((count, 1, side, side), dtype=torch.uint8)
    masks = torch.empty((count, len(ORGANS), side, side), dtype=torch.uint8)
    for index in range(count):
        item = dataset[index]
        mask = organ_mask(item).float()[None]
        if mask.shape[2:] != (side, side):
            mask = F.interpolate(mask, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        images[index] = (segmenter.prepare(item["image"][None].float())[0] * 255).round().to(torch.uint8)
        masks[index] = (mask[0] * 255).round().to(torch.uint8)
    return images, masks


def _augment(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move image and masks together; change contrast, gamma and noise of the image alone."""
    count, device = len(image), image.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count, device=device).uniform_(low, high)

    angle, zoom = uniform(-0.2, 0.2), uniform(0.85, 1.15)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack(
        (
            torch.stack((cos, -sin, uniform(-0.12, 0.12)), 1),
            torch.stack((sin, cos, uniform(-0.12, 0.12)), 1),
        ),
        1,
    )
    both = torch.cat((image, mask), 1)
    grid = F.affine_grid(theta, list(both.shape), align_corners=False)
    both = F.grid_sample(both, grid, align_corners=False)
    image, mask = both[:, :1], both[:, 1:]
    gamma = torch.exp(uniform(-0.5, 0.5)).view(-1, 1, 1, 1)
    gain = uniform(0.7, 1.3).view(-1, 1, 1, 1)
    image = (image.clamp(1e-4, 1) ** gamma - 0.5) * gain + 0.5 + torch.randn_like(image) * 0.03
    return image.clamp(0, 1), mask


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
