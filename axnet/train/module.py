"""The Lightning side of training: module, data module, validation metric, weight averaging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities.data import dim_zero_cat

from axnet.models.preprocessing import Preprocessing
from axnet.train.augment import Augmentation
from axnet.train.data import Batches, XraySet, loader
from axnet.train.groups import parameter_groups
from axnet.train.inputs import to_input
from axnet.train.losses import LossName, loss_of
from axnet.train.mixing import mixed, smoothed
from axnet.train.sampling import SamplingName, WeightedSampler, class_balanced
from axnet.train.schedule import cosine, one_cycle
from axnet.train.sharding import SharedAveraging, local
from axnet.train.synchronised import synchronised

OptimizerName = Literal["adamw", "adam"]
ScheduleName = Literal["one-cycle", "cosine", "constant"]


class MeanAUROC(Metric):
    """Mean AUROC over the findings that have both a positive and a negative image; nan where none has.

    Images with the same index count once: processes that share out a set are given some twice, to have equal numbers.
    """

    full_state_update = False

    def __init__(self) -> None:
        """An empty metric."""
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Add a batch: scores [N,K] in [0,1], labels [N,K]: 0, 1, or NaN for unknown, which is left out.

        index: position of each image in its set, int64 [N]; None for images that were not there before.
        """
        cast("list[Tensor]", self.scores).append(scores)
        cast("list[Tensor]", self.labels).append(labels)
        cast("list[Tensor]", self.index).append(
            labels.new_full(labels.shape[:1], -1).long() if index is None else index
        )

    def compute(self) -> Tensor:
        """The mean over what update has seen on all processes, a scalar."""
        scores, labels, index = (
            dim_zero_cat(cast("list[Tensor]", part)) for part in (self.scores, self.labels, self.index)
        )
        once = _first_of_each(index.long())
        scores, labels = scores[once], labels[once]
        found = []
        for score, label in zip(scores.unbind(1), labels.unbind(1), strict=True):
            known = ~label.isnan()
            if (label == 0).any() and (label == 1).any():
                found.append(binary_auroc(score[known], label[known].long()))
        return torch.stack(found).mean() if found else torch.tensor(float("nan"), device=scores.device)


def _first_of_each(index: Tensor) -> Tensor:
    """Positions of the first of equal entries [N], and of all that are negative."""
    ordered, order = index.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first | (ordered < 0)].sort().values


class ClassifierModule(L.LightningModule):
    """Trains a classifier that maps (image, mask) to an Output.

    preprocessing: of the images; augmentation: of training batches, on the device, None for none. loss: "bce", with
    pos_weight [K] or without, "focal", "asymmetric" or "auc-margin"; label_smoothing, mixup: of training batches, see
    FitConfig. optimizer: "adamw" or "adam"; layer_decay: see parameter_groups. schedule: "one-cycle", "cosine" or
    "constant", over all optimizer steps of the run. seed: of dropout and augmentation. synchronise: whether batch
    normalisation is over the batches of all processes. compiled: whether torch.compile compiles the whole model.
    Logs train_loss, val_loss and val_auc.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        *,
        augmentation: Augmentation | None = None,
        loss: LossName = "bce",
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        layer_decay: float = 1.0,
        schedule: ScheduleName = "one-cycle",
        seed: int = 0,
        synchronise: bool = False,
        compiled: bool = False,
    ) -> None:
        """The class describes the arguments."""
        super().__init__()
        self.model = model
        self.synchronise = synchronise
        # a function, not a module: what is trained and saved stays the plain model
        self._run = torch.compile(lambda *inputs: model(*inputs), fullgraph=True) if compiled else None
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.loss_name: LossName = loss
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.register_buffer("pos_weight", pos_weight, persistent=False)
        self.optimizer_name = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.schedule = schedule
        self.seed = seed
        self.auroc = MeanAUROC()
        self.films = 0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar, in float32 whatever the precision of the network."""
        weight = self.pos_weight if isinstance(self.pos_weight, Tensor) else None
        return loss_of(self.loss_name, logits.float(), labels, pos_weight=weight)

    def _logits(self, ready: dict[str, Tensor]) -> Tensor:
        kind = next(self.model.parameters()).dtype  # bf16-true and its like: films are float32, whatever Lightning does
        logits: Tensor = (self._run or self.model)(ready["image"].to(kind), ready["mask"].to(kind)).logits
        return logits

    def on_train_start(self) -> None:
        """Synchronise, once DistributedDataParallel is there: on a CPU it would refuse such a module."""
        if self.synchronise and self.trainer.world_size > 1:
            synchronised(self.model)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a training batch of 8-bit images and masks."""
        # a seed per step: a resumed run repeats the augmentation and dropout of the run that it continues
        torch.manual_seed(hash((self.seed, self.current_epoch, batch_idx, self.global_rank)) % 2**63)
        self.films += len(batch["label"])
        ready = to_input(batch, self.preprocessing, self.augmentation)
        if self.mixup:
            ready = mixed(ready, self.mixup)
        loss = self.loss(self._logits(ready), smoothed(ready["label"], self.label_smoothing))
        count = len(batch["label"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, prog_bar=True, batch_size=count)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Check the weights before they are scored and kept."""
        self._check_weights()

    def on_train_epoch_end(self) -> None:
        """Check the weights where there is no validation, before they are kept."""
        self._check_weights()

    def _check_weights(self) -> None:
        weights = local([parameter.detach() for parameter in self.model.parameters()])
        if not torch.stack([weight.float().sum() for weight in weights]).isfinite().all():
            raise ValueError(
                f"lr is {self.lr:g} with precision '{self.trainer.precision}', but in epoch {self.current_epoch} some "
                "weights became infinite or NaN, expected a smaller lr, or precision '32-true' or 'bf16-mixed'."
            )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and AUROC of a validation batch of 8-bit images and masks."""
        ready = to_input(batch, self.preprocessing)
        logits = self._logits(ready)
        count = len(batch["label"])
        self.log("val_loss", self.loss(logits, batch["label"]), batch_size=count, sync_dist=True)
        self.auroc.update(logits.float().sigmoid(), batch["label"], batch["index"])
        self.log("val_auc", self.auroc, prog_bar=True, batch_size=count)

    def configure_optimizers(self) -> Any:
        """Optimizer and per-step schedule; biases and normalisation are not decayed."""
        groups = parameter_groups(self.model, lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)
        make = torch.optim.AdamW if self.optimizer_name == "adamw" else torch.optim.Adam
        optimizer = make(groups, lr=self.lr)
        if self.schedule == "constant":
            return optimizer
        steps = max(2, int(self.trainer.estimated_stepping_batches))
        # a function of the step, not a state: a resumed run may be longer than the one it continues
        curve = one_cycle if self.schedule == "one-cycle" else cosine
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: curve(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class XrayDataModule(L.LightningDataModule):
    """Cuts batches of 8-bit images and masks from sets in memory.

    train, validation: sets with masks; batch_size: images per step and process; sampling: "uniform", every film once an
    epoch, or "balanced" (class_balanced), as many films; workers: processes that cut batches; seed: of the order.
    """

    def __init__(
        self,
        train: XraySet,
        validation: XraySet | None,
        *,
        batch_size: int,
        sampling: SamplingName = "uniform",
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        """The class describes the arguments."""
        super().__init__()
        self.train_batches = Batches(train)
        self.validation_batches = None if validation is None else Batches(validation)
        self.batch_size = batch_size
        self.chance = class_balanced(train.labels) if sampling == "balanced" else None
        self.workers = workers
        self.seed = seed

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Ordered by seed and epoch, shared out over the processes; a short last batch is dropped.

        Without balanced sampling no film comes twice in an epoch.
        """
        trainer = self.trainer
        replicas, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        drop_last = len(self.train_batches) >= replicas  # else some film would be shown twice in an epoch
        order: DistributedSampler[Any]
        if self.chance is None:
            order = DistributedSampler(self.train_batches, replicas, rank, seed=self.seed, drop_last=drop_last)
        else:
            order = WeightedSampler(
                self.train_batches, self.chance, replicas, rank, seed=self.seed, drop_last=drop_last
            )
        size = min(self.batch_size, len(order))
        return self._loader(self.train_batches, batch_size=size, sampler=order, drop_last=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[Any]:
        """In order, every image."""
        if self.validation_batches is None:
            return []
        return self._loader(self.validation_batches, batch_size=2 * self.batch_size)

    def _loader(self, batches: Batches, batch_size: int, **options: Any) -> DataLoader[dict[str, Tensor]]:
        return loader(
            batches,
            batch_size=batch_size,
            workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )


def exponential_average(decay: float) -> SharedAveraging:
    """Callback that validates and ends with an exponential moving average of the weights.

    decay: share of the average kept per step, in (0,1); it starts lower, as min(decay, (1+t)/(10+t)) after t steps.
    """
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay is {decay}, expected a number between 0 and 1.")

    def update(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
        steps = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(local(average), local(current), count)

    return SharedAveraging(multi_avg_fn=update)
