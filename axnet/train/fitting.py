"""Train a classifier, and score images with one."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from axnet.devices import in_channels_last
from axnet.models.preprocessing import Preprocessing
from axnet.models.storage import build_classifier, save_classifier
from axnet.precision import float32_by_default
from axnet.progress.training import bar
from axnet.train.augment import Augmentation
from axnet.train.data import XraySet, measured
from axnet.train.labels import checked_labels, known_findings
from axnet.train.loggers import checked_loggers, loggers
from axnet.train.losses import HARD, LOSSES, LossName, auc_margin_class, positive_weights
from axnet.train.module import (
    ClassifierModule,
    OptimizerName,
    ScheduleName,
    XrayDataModule,
    exponential_average,
)
from axnet.train.precise_bn import Kept, with_precise_bn
from axnet.train.resuming import check_same_run, keep_rows, record_of, write_record
from axnet.train.sampling import SAMPLINGS, SamplingName
from axnet.train.sharding import FullyShardedStrategy
from axnet.train.shares import ended_with_a_sentence
from axnet.train.synchronised import separate

WEIGHTS_NAME = "model.safetensors"

StrategyName = Literal["ddp", "fsdp2"]

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")


@dataclass(frozen=True)
class FitConfig:
    """One training run.

    out: folder of the run; it receives config.json, model.safetensors, checkpoints/ (Lightning's, for resuming), logs.
    architecture: "anatomy-xnet" or "densenet-gap"; options: further arguments of its class, such as backbone.
    epochs, or max_steps when it is given: length in passes over the data or in optimizer steps.
    batch_size: images per step; accumulate: steps whose gradients are summed before the optimizer moves.
    lr, weight_decay, optimizer ("adamw", "adam"), schedule ("one-cycle", "cosine", "constant").
    loss: "bce", "focal", "asymmetric" or "auc-margin" (axnet.train.losses); pos_weight: weigh positives by their rarity
    (bce only). label_smoothing: share of each training label that becomes one half. mixup: alpha of the Beta from which
    the share of the blend of two films, masks and labels is drawn, 0 for none. sampling: "uniform", every film once an
    epoch, or "balanced", a finding at random and then a film that has it.
    layer_decay: learning rate of each part of the backbone as a share of that of the part behind it, 1 for one rate.
    ema_decay: of the averaged weights, None for the plain ones; gradient_clip: largest norm of the gradient, 0 for any.
    augmentation: None for none. pretrained: weights of the backbone to begin with: "imagenet", those that its package
    brings, or a file; the images are then normalised as those weights expect. None begins from random weights, with the
    mean and deviation of the training films.
    select: "best" keeps the weights of the epoch with the best validation AUC, "last" the final ones.
    precise_bn: films, as they are read, on which the statistics of batch normalisation are taken again at the end
    (Wu and Johnson, arXiv 2105.07576), 0 for those of training, which augmentation and averaging have changed; with
    select "best" the better of the two by validation AUC are kept.
    channels_last: memory layout of the convolutions, faster on CPUs and GPUs alike; the weights are the same.
    compile: whether torch.compile compiles the whole network (fullgraph), in one process.
    accelerator, devices, num_nodes: as Lightning's Trainer; devices "auto" under torchrun is all processes; precision
    too, "auto" is bf16-mixed on a GPU that has bfloat16, else 32-true. strategy: what each of several processes keeps
    of the parameters, their average, gradients and optimizer states, a copy ("ddp") or a share ("fsdp2").
    sync_batchnorm: with several devices, normalise over the batches of all of them, as "fsdp2" always does. workers:
    processes that cut batches.
    resume: continue from out/checkpoints/last.ckpt, with the settings and sets that the run began with; only its length
    (epochs, max_steps), what it writes and shows, accelerator, devices, strategy and workers may be others, and
    batch_size by as much as the number of processes. progress: a bar on a terminal, else a line now and then.
    logger: where numbers are logged to: "csv", "tensorboard", "wandb", "mlflow", or several. logs: whether to log at
    all and to write checkpoints.
    Raises ValueError for a number or name out of range, ModuleNotFoundError where a loss or logger needs a package.
    """

    out: str
    architecture: Literal["anatomy-xnet", "densenet-gap"] = "anatomy-xnet"
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 20
    max_steps: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 1e-4
    optimizer: OptimizerName = "adamw"
    schedule: ScheduleName = "one-cycle"
    loss: LossName = "bce"
    pos_weight: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    sampling: SamplingName = "uniform"
    layer_decay: float = 1.0
    ema_decay: float | None = 0.997
    gradient_clip: float = 1.0
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    pretrained: str | None = None
    select: Literal["best", "last"] = "best"
    precise_bn: int = 640
    channels_last: bool = True
    compile: bool = False
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: StrategyName = "ddp"
    sync_batchnorm: bool = True
    workers: int = 0
    seed: int = 0
    resume: bool = False
    progress: bool = True
    logger: tuple[str, ...] = ("csv", "tensorboard")
    logs: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("epochs", "batch_size", "accumulate", "num_nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}, expected 1 or more.")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}, expected a positive number.")
        if self.precise_bn < 0:
            raise ValueError(f"precise_bn is {self.precise_bn}, expected 0 or more.")
        for name in ("weight_decay", "gradient_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or a positive number.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, expected a number between 0 and 1, or None.")
        for name, accepted in (
            ("architecture", ("anatomy-xnet", "densenet-gap")),
            ("optimizer", ("adamw", "adam")),
            ("schedule", ("one-cycle", "cosine", "constant")),
            ("loss", LOSSES),
            ("sampling", SAMPLINGS),
            ("select", ("best", "last")),
            ("precision", PRECISIONS),
            ("strategy", ("ddp", "fsdp2")),
        ):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {accepted}.")
        if self.strategy == "fsdp2" and not self.sync_batchnorm:
            raise ValueError("sync_batchnorm is False with strategy 'fsdp2', expected True.")
        if self.pos_weight and self.loss != "bce":
            raise ValueError(f"pos_weight is True with loss '{self.loss}', expected it with 'bce' only.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected a number from 0 to below 1.")
        if not 0 <= self.mixup < math.inf:
            raise ValueError(f"mixup is {self.mixup}, expected 0 or a positive number.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}, expected a number above 0, up to 1.")
        if self.loss in HARD:
            for name in ("label_smoothing", "mixup"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} is {getattr(self, name)} with loss '{self.loss}', which takes labels of 0 and 1 only, "
                        "expected 0."
                    )
            auc_margin_class()
        checked_loggers(self.logger)


@dataclass(frozen=True)
class FitResult:
    """What a training run leaves.

    model: in eval mode on the CPU; preprocessing: of its input; weights: the file, for load_classifier.
    seconds: of training, wall clock; steps: optimizer steps, with those of the run that was resumed; films: how many
    training images were shown, in this call and on all devices; val_auc: mean AUC on the validation set, nan without
    one; other_auc: that of the statistics of batch normalisation that were not kept, nan where they were not compared;
    precise_bn: whether those that were kept are FitConfig.precise_bn's; parameters: their number.
    """

    model: nn.Module
    preprocessing: Preprocessing
    weights: Path
    seconds: float
    steps: int
    films: int
    val_auc: float
    other_auc: float
    precise_bn: bool
    parameters: int


def fit(config: FitConfig, train: XraySet, validation: XraySet | None = None) -> FitResult:
    """Train a classifier on one set, watch it on another.

    train, validation: sets with masks of the same size and findings, whose labels are 0, 1, or NaN for unknown, which
    is left out of loss, class weights and validation AUC. The same config and sets give the same weights
    on the same machine with the same number of threads.
    Raises ValueError for sets that do not fit together or other labels, FileNotFoundError when there is nothing to
    resume.
    """
    train, validation = _checked_sets(train, validation)
    config = replace(config, precision=_precision(config))
    out = Path(config.out)
    resume_from = out / "checkpoints" / "last.ckpt"
    if config.resume and not resume_from.is_file():
        raise FileNotFoundError(f"resume needs '{resume_from}', which does not exist.")
    out.mkdir(parents=True, exist_ok=True)
    pos_weight = positive_weights(train.labels) if config.pos_weight else None
    with _quiet(), float32_by_default(), torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model, preprocessing = _begin(config, train)
        model = in_channels_last(model) if config.channels_last else model
        module = ClassifierModule(
            model,
            preprocessing,
            augmentation=config.augmentation,
            loss=config.loss,
            pos_weight=pos_weight,
            label_smoothing=config.label_smoothing,
            mixup=config.mixup,
            optimizer=config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            schedule=config.schedule,
            seed=config.seed,
            synchronise=config.sync_batchnorm,
            compiled=config.compile,
        )
        data = XrayDataModule(
            train,
            validation,
            batch_size=config.batch_size,
            sampling=config.sampling,
            workers=config.workers,
            seed=config.seed,
        )
        keepers = _checkpoints(out, validation is not None) if config.logs else []
        trainer = _trainer(config, keepers)
        check_processes(config, trainer.world_size)
        record = record_of(asdict(config), train, validation, trainer.world_size)
        if config.resume:
            check_same_run(out, record, FitConfig)
        if config.logs:  # wandb and mlflow begin a run when they are made: not one that is refused
            trainer.loggers = loggers(config.logger, out, asdict(config))
        if trainer.is_global_zero:
            write_record(out, record)
        tables = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        if config.resume and tables and trainer.is_global_zero:
            state = torch.load(resume_from, map_location="cpu", weights_only=True, mmap=True)
            keep_rows(tables[0], int(state["global_step"]))
        started = time.perf_counter()
        with ended_with_a_sentence(trainer.world_size, "--resume continues it from its last epoch."):
            trainer.fit(module, datamodule=data, ckpt_path=resume_from if config.resume else None, weights_only=True)
        if isinstance(trainer.strategy, FullyShardedStrategy):  # the one that was trained holds shares
            kind = next(model.parameters()).dtype
            model = build_classifier(config.architecture, cast(Any, model).config).to(kind)
            model = in_channels_last(model) if config.channels_last else model
            model.load_state_dict(trainer.strategy.weights)
        separate(model)
        seconds = time.perf_counter() - started
        val_auc = float(trainer.callback_metrics.get("val_auc", float("nan")))
        best = keepers[0] if keepers and config.select == "best" else None
        if best is not None and best.best_model_score is not None:
            stored = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
            model.load_state_dict({name.removeprefix("model."): value for name, value in stored["state_dict"].items()})
            val_auc = float(best.best_model_score)
        kept = Kept(precise=False, val_auc=val_auc)
        if config.precise_bn:  # each process alike
            kept = with_precise_bn(
                model.to(trainer.strategy.root_device),
                preprocessing,
                train,
                validation,
                val_auc,
                films=config.precise_bn,
                batch_size=config.batch_size * trainer.world_size,
                seed=config.seed,
                always=config.select == "last",
            )
    model = model.cpu().eval()
    weights = out / WEIGHTS_NAME
    if trainer.is_global_zero:
        training = asdict(config) | {"precise_bn": config.precise_bn if kept.precise else 0}
        save_classifier(weights, model, preprocessing, train.findings, training=training)
    return FitResult(
        model=model,
        preprocessing=preprocessing,
        weights=weights,
        seconds=seconds,
        steps=trainer.global_step,
        films=module.films * trainer.world_size,
        val_auc=kept.val_auc,
        other_auc=kept.other_auc,
        precise_bn=kept.precise,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def check_processes(config: FitConfig, count: int) -> None:
    """Raises ValueError for a setting that does not go with so many processes, on all machines."""
    if config.compile and count > 1:
        raise ValueError(f"compile is on with {count} processes, expected one process with it.")
    if config.strategy == "fsdp2" and count == 1:
        raise ValueError("strategy is 'fsdp2' with 1 process, expected several processes with it.")


def _checked_sets(train: XraySet, validation: XraySet | None) -> tuple[XraySet, XraySet | None]:
    """The sets with checked labels."""
    if len(train) < 2:
        raise ValueError(f"train has {len(train)} images, expected two or more.")
    train = replace(train, labels=checked_labels(train.labels, train.findings, train.ids, "train", smooth=True))
    known_findings(train.labels, train.findings, "train")
    if validation is None:
        return train, None
    if validation.findings != train.findings:
        raise ValueError(f"validation has findings {validation.findings}, train has {train.findings}.")
    if validation.preprocessing.size != train.preprocessing.size:
        raise ValueError(
            f"validation has images of {validation.preprocessing.size} pixels, train of {train.preprocessing.size}."
        )
    shared = sorted(set(validation.patients) & set(train.patients))
    if shared:
        raise ValueError(f"{len(shared)} patients are in both train and validation, among them '{shared[0]}'.")
    labels = checked_labels(validation.labels, validation.findings, validation.ids, "validation", smooth=True)
    uncertain = (labels > 0) & (labels < 1)  # smoothed to train on, but no truth to measure with
    return train, replace(validation, labels=labels.masked_fill(uncertain, float("nan")))


def _begin(config: FitConfig, train: XraySet) -> tuple[nn.Module, Preprocessing]:
    """The classifier with its first weights, and the preprocessing that goes with them."""
    options: dict[str, Any] = {"num_classes": len(train.findings), **config.options}
    if config.pretrained is None:
        return build_classifier(config.architecture, options), measured(train)
    options["pretrained"] = True if config.pretrained == "imagenet" else config.pretrained
    model = build_classifier(config.architecture, options)
    expected: tuple[float, float] | None = getattr(model.backbone, "normalisation", None)
    if expected is None:
        return model, measured(train)
    return model, replace(train.preprocessing, mean=expected[0], std=expected[1])


def _checkpoints(out: Path, watched: bool) -> list[ModelCheckpoint]:
    """Of the best epoch, where a validation set says which, and of the last: Lightning's save_last skips worse ones."""
    options: dict[str, Any] = {"save_top_k": 1, "enable_version_counter": False}
    last = ModelCheckpoint(out / "checkpoints", filename="last", **options)
    if not watched:
        return [last]
    best = ModelCheckpoint(out / "checkpoints", filename="best", monitor="val_auc", mode="max", **options)
    return [best, last]  # in this order: the last one's file holds what the best one is


def _trainer(config: FitConfig, keepers: list[ModelCheckpoint]) -> L.Trainer:
    callbacks: list[Callback] = [bar(leave=config.logs)] if config.progress else []
    callbacks += keepers
    if config.ema_decay is not None:
        callbacks.append(exponential_average(config.ema_decay))
    devices, nodes = config.devices, config.num_nodes
    if devices == "auto" and "LOCAL_WORLD_SIZE" in os.environ:  # on a CPU Lightning would take one, and train apart
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    return L.Trainer(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=FullyShardedStrategy() if config.strategy == "fsdp2" else "auto",
        precision=config.precision,  # type: ignore[arg-type]
        max_epochs=-1 if config.max_steps is not None else config.epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.gradient_clip,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=bool(keepers),
        enable_progress_bar=config.progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )


def _precision(config: FitConfig) -> str:
    if config.precision != "auto":
        return config.precision
    on_gpu = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's notices (devices, tips, worker counts); errors and our own output stay."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "lightning")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", module=r"torchmetrics\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
