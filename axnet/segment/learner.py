"""One step of the segmenter's training, supervised or with a mean teacher, and what is kept of it between epochs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, cast

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Sampler

from axnet.data.findings import ORGANS
from axnet.segment.augment import augment
from axnet.segment.segmenter import Segmenter

_LOOKS = 20  # how often a run looks at its validation images: the schedule ends at rest, so more would find little


class Shuffle(Sampler[int]):
    """Positions in an order that seed and epoch determine; Lightning calls set_epoch.

    samples: how many an epoch has, None for each position once; more than there are positions begin again.
    """

    def __init__(self, count: int, seed: int, samples: int | None = None) -> None:
        """Begin with epoch 0."""
        self.count, self.seed, self.epoch = count, seed, 0
        self.samples = count if samples is None else samples

    def set_epoch(self, epoch: int) -> None:
        """Change the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of positions in an epoch."""
        return self.samples

    def __iter__(self) -> Iterator[int]:
        """The positions of this epoch."""
        generator = torch.Generator().manual_seed(_epoch_seed(self.seed, self.epoch))
        rounds = math.ceil(self.samples / self.count)
        order = torch.cat([torch.randperm(self.count, generator=generator) for _ in range(rounds)])
        return iter(order[: self.samples].tolist())


class Learner(lightning.LightningModule):
    """Dice and binary cross-entropy of each organ, AdamW on one cycle; the result is a mean of the weights over time.

    The teacher is the exponential mean of the student's weights (decay `ema`, less in the first steps). Where a batch
    holds unlabelled images too, it draws their organs, and the student has to draw the same after image and drawing
    were moved and the image's grey values were changed (Tarvainen and Valpola, arXiv 1703.01780): binary cross-entropy
    to the teacher's probabilities, its weight `consistency` reached along a Gaussian ramp in the first quarter of the
    run. What is returned is the teacher, and of its states the one with the best Dice on val.

    steps: of the whole run. mirror: chance of a mirrored image, None for no augmentation. strength: of the labelled
    images' augmentation, that of the others being 1. val: images uint8
    [N, 1, s, s] and masks uint8 [N, 3, s, s]. run: plain values that name the run in its saved state.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        steps: int,
        lr: float,
        mirror: float | None,
        seed: int,
        val: tuple[Tensor, Tensor] | None,
        run: dict[str, Any],
        consistency: float = 1.0,
        ema: float = 0.99,
        strength: float = 1.0,
    ) -> None:
        """Keep what the class describes."""
        from monai.losses.dice import DiceLoss

        super().__init__()
        self.segmenter = segmenter
        self.average = AveragedModel(segmenter, avg_fn=self._averaged, use_buffers=True).requires_grad_(False).eval()
        self.average.n_averaged.fill_(1)  # of the weights it began with, which the first step does not forget
        self.consistency, self.ema = consistency, ema
        self.steps = steps
        self.lr = lr
        self.mirror, self.strength = mirror, strength
        self.seed = seed
        self.val = val
        self.run = run
        self.history: list[dict[str, float]] = []
        self.best_epoch: int | None = None
        self.best_dice = -math.inf
        self.best_state: dict[str, Tensor] | None = None
        # Not MONAI's DiceCELoss: with more than one channel its cross-entropy is a softmax, and organs overlap.
        self.dice_loss = DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)
        self._losses: list[Tensor] = []

    @property
    def teacher(self) -> Segmenter:
        """The mean of the students."""
        return cast(Segmenter, self.average.module)

    def on_train_epoch_start(self) -> None:
        """Draw the augmentation from a seed of this epoch, so that a resumed run repeats it."""
        torch.manual_seed(_epoch_seed(self.seed, self.current_epoch))
        self._losses.clear()

    def on_train_start(self) -> None:
        """Lightning sets every module to training; the teacher never trains."""
        self.teacher.eval()

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Loss of a batch [images, masks] in uint8, or of {"labelled": [images, masks], "unlabelled": [images]}."""
        both = isinstance(batch, dict)
        labelled = batch["labelled"] if both else batch
        image, mask = labelled[0].float() / 255, labelled[1].float() / 255
        count = len(image)
        if both:
            unlabelled = batch["unlabelled"][0].float() / 255
            with torch.no_grad():
                drawn = self.teacher(unlabelled).float().sigmoid()
            image, mask = torch.cat((image, unlabelled)), torch.cat((mask, drawn))
        if self.mirror is not None:
            image, mask = self._augmented(image, mask, count)
            image = self.segmenter.prepare(image)
        logits = self.segmenter(image).float()
        entropy = F.binary_cross_entropy_with_logits
        loss: Tensor = self.dice_loss(logits[:count], mask[:count]) + entropy(logits[:count], mask[:count])
        if both:
            loss = loss + self._ramp() * entropy(logits[count:], mask[count:])
        self.log("loss", loss, prog_bar=True)
        self._losses.append(loss.detach())
        return loss

    def _augmented(self, image: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Move and change a batch: its first `count` films, the labelled ones, with `strength`, the others fully."""
        assert self.mirror is not None
        parts = [augment(image[:count], mask[:count], self.strength * self.mirror, self.strength)]
        if count < len(image):
            parts.append(augment(image[count:], mask[count:], self.mirror))
        images, masks = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(masks)

    def _ramp(self) -> float:
        """Weight of the consistency: the teacher knows nothing at first."""
        progress = min(1.0, self.global_step / max(1, self.steps // 4))
        return self.consistency * math.exp(-5 * (1 - progress) ** 2)

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the teacher towards the student."""
        self.average.update_parameters(self.segmenter)

    def _averaged(self, mean: Tensor, value: Tensor, _: Tensor | int) -> Tensor:
        """The teacher's next value of a weight or buffer; counts are the student's."""
        decay = min(self.ema, (1 + self.global_step) / (10 + self.global_step))
        return mean.lerp(value, 1 - decay) if mean.is_floating_point() else value

    def on_train_epoch_end(self) -> None:
        """Record the epoch; look at the validation images now and then, and at the end."""
        entry: dict[str, float] = {"loss": float(torch.stack(self._losses).mean())}
        every = max(1, math.ceil(self.steps / int(self.trainer.num_training_batches) / _LOOKS))
        if self.val is not None and (self.global_step >= self.steps or (self.current_epoch + 1) % every == 0):
            dice = self._validation_dice(*self.val)
            entry.update(zip(ORGANS, dice, strict=True))
            mean = sum(dice) / len(dice)
            self.log("dice", mean, prog_bar=True)
            if mean >= self.best_dice:
                self.best_dice, self.best_epoch = mean, self.current_epoch
                state = self.teacher.state_dict()
                self.best_state = {name: value.detach().cpu().clone() for name, value in state.items()}
        self.history.append(entry)

    @torch.no_grad()
    def _validation_dice(self, images: Tensor, masks: Tensor) -> list[float]:
        """Dice of each organ at the network's size, averaged over the images."""
        from monai.metrics.meandice import DiceMetric

        metric = DiceMetric(reduction="mean_batch", ignore_empty=False)
        for image, mask in zip(images.split(16), masks.split(16), strict=True):
            logits = self.teacher(image.to(self.device).float() / 255)
            metric((logits > 0).float().cpu(), (mask >= 128).float())
        result = metric.aggregate()
        assert isinstance(result, Tensor)
        return [float(value) for value in result]

    def result(self) -> Segmenter:
        """The teacher, with its best weights where there was something to choose by."""
        if self.best_state is not None:
            self.teacher.load_state_dict(self.best_state)
        return self.teacher.requires_grad_(True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is kept between epochs."""
        checkpoint["run"] = copy.deepcopy(self.run)
        checkpoint["kept"] = {
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_dice": self.best_dice,
            "best_state": self.best_state,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back, and begin with a new epoch."""
        for name, value in checkpoint["kept"].items():
            setattr(self, name, value)
        weights = checkpoint["state_dict"]
        for name in [name for name in weights if name.startswith("teacher.")]:  # as axnet named it at first
            weights[f"average.module.{name.removeprefix('teacher.')}"] = weights.pop(name)
        weights.setdefault("average.n_averaged", self.average.n_averaged)
        # The state is saved when its epoch has ended but does not count as completed yet. Lightning would look for the
        # validation that it expects then and, where the loop has none, train one batch of that epoch again.
        progress = checkpoint["loops"]["fit_loop"]
        for counts in ("total", "current"):
            epoch = progress["epoch_progress"][counts]
            epoch["completed"] = epoch["processed"]
        batches = progress["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False

    def _rate(self, step: int) -> float:
        """One cycle: up in a fifth of the steps, down along a cosine; a resumed run may be longer than the first."""
        rise = max(1, self.steps // 5)
        if step < rise:
            return 0.04 + 0.96 * step / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, self.steps - rise))))

    def configure_optimizers(self) -> Any:
        """AdamW, with the rate changed after every step."""
        optimizer = torch.optim.AdamW(self.segmenter.parameters(), self.lr, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63
