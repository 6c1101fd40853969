"""`axnet fit`: train a classifier."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from axnet.cli import processes
from axnet.cli.config import Config, write_settings
from axnet.cli.options import (
    Blank,
    Cache,
    Data,
    OrganRoot,
    Quiet,
    Root,
    Seed,
    SegmenterFile,
    SplitName,
    Uncertain,
    Views,
    Workers,
    writable_folder,
)
from axnet.data.sets import DEFAULT

if TYPE_CHECKING:
    from axnet.train import DataConfig, XraySet

CACHE_VARIABLE = "AXNET_FIT_CACHE"
"""Names the folder of images and masks to the processes of one run."""

FILMS_NAME = "films.txt"
"""In a run's folder: the ids of the films that it trained on or chose by, one per line."""

PATIENTS_NAME = "patients.txt"
"""In a run's folder: their patients, one per line, each after the name of the data set."""

VALIDATION_NAME = "validation.txt"
"""In a run's folder: the ids of those that it held out to choose by, one per line."""


class Architecture(str, Enum):
    """Classifiers that can be trained."""

    anatomy_xnet = "anatomy-xnet"
    densenet_gap = "densenet-gap"


class Maps(str, Enum):
    """Probability maps of PWAP."""

    one = "1"
    classes = "classes"


class Loss(str, Enum):
    """Losses."""

    bce = "bce"
    focal = "focal"
    asymmetric = "asymmetric"
    auc_margin = "auc-margin"


class Sampling(str, Enum):
    """How films are chosen for an epoch."""

    uniform = "uniform"
    balanced = "balanced"


class Schedule(str, Enum):
    """Learning-rate schedules."""

    one_cycle = "one-cycle"
    cosine = "cosine"
    constant = "constant"


class Strategy(str, Enum):
    """What each of several processes keeps of the network's state."""

    ddp = "ddp"
    fsdp2 = "fsdp2"


def fit(
    context: typer.Context,
    config_file: Config = None,
    out: Annotated[Path, typer.Option(help="Folder of the run: weights, checkpoints, logs.")] = Path("axnet-run"),
    data: Data = DEFAULT,
    root: Root = None,
    split: SplitName = None,
    uncertain: Uncertain = None,
    blank: Blank = None,
    views: Views = None,
    segmenter: SegmenterFile = None,
    organ_root: OrganRoot = None,
    architecture: Annotated[Architecture, typer.Option(help="Network.")] = Architecture.anatomy_xnet,
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Backbone: densenet121, tiny, efficientnet_lite0 (1, 2; extra 'backbones'), timm:NAME, "
            "torchvision:NAME or monai:NAME.",
        ),
    ] = "densenet121",
    pretrained: Annotated[
        str,
        typer.Option(
            metavar="WEIGHTS",
            help="Weights to begin with: imagenet, those that the backbone's package brings; a file (.pth, "
            ".safetensors), such as torchvision's DenseNet-121; or none.",
        ),
    ] = "none",
    input_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=16, help="Side to which the network resizes its images, for small films; none by default."),
    ] = None,
    num_maps: Annotated[Maps, typer.Option(help="Probability maps: one, or one per finding.")] = Maps.one,
    reduction: Annotated[float, typer.Option(help="Width of A3's gates relative to the channels.")] = 1.0,
    size: Annotated[int, typer.Option(min=16, help="Side of the images in pixels.")] = 224,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 32,
    accumulate: Annotated[int, typer.Option(min=1, help="Steps whose gradients are summed per update.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-4,
    weight_decay: Annotated[float, typer.Option(min=0, help="Decay of the weights (AdamW).")] = 1e-4,
    schedule: Annotated[Schedule, typer.Option(help="Learning-rate schedule.")] = Schedule.one_cycle,
    loss: Annotated[
        Loss, typer.Option(help="Binary cross-entropy, focal, asymmetric, or AUC-margin loss (docs/training.md).")
    ] = Loss.bce,
    pos_weight: Annotated[bool, typer.Option(help="Weigh positives by their rarity (bce).")] = False,
    label_smoothing: Annotated[
        float, typer.Option(min=0, help="Share of each training label that becomes one half.")
    ] = 0.0,
    mixup: Annotated[
        float, typer.Option(min=0, help="Blend pairs of films, masks and labels by Beta(MIXUP, MIXUP); 0 for none.")
    ] = 0.0,
    sampling: Annotated[
        Sampling, typer.Option(help="Every film once an epoch, or a finding at random and then a film that has it.")
    ] = Sampling.uniform,
    layer_decay: Annotated[
        float,
        typer.Option(help="Learning rate of each part of the backbone as a share of that behind it; 1 for one rate."),
    ] = 1.0,
    ema_decay: Annotated[float, typer.Option(help="Decay of the averaged weights; 0 for plain weights.")] = 0.997,
    precise_bn: Annotated[
        int,
        typer.Option(
            min=0,
            help="Films, as read, on which normalisation takes its statistics again at the end; 0 for none.",
        ),
    ] = 640,
    degrees: Annotated[float, typer.Option(min=0, help="Augmentation: largest rotation.")] = 7.0,
    translate: Annotated[float, typer.Option(min=0, help="Augmentation: largest shift, share of the side.")] = 0.05,
    scale: Annotated[float, typer.Option(min=0, help="Augmentation: largest relative zoom.")] = 0.1,
    moved: Annotated[
        float,
        typer.Option(min=0, max=1, help="Augmentation: chance of the above: what is moved is blurred."),
    ] = 1.0,
    contrast: Annotated[float, typer.Option(min=0, help="Augmentation: largest change of contrast.")] = 0.2,
    gamma: Annotated[float, typer.Option(min=0, help="Augmentation: largest exposure change, a power of two.")] = 0.0,
    noise: Annotated[float, typer.Option(min=0, help="Augmentation: largest standard deviation of noise.")] = 0.0,
    blur: Annotated[float, typer.Option(min=0, help="Augmentation: largest standard deviation of blur, pixels.")] = 0.0,
    erase: Annotated[float, typer.Option(min=0, max=1, help="Augmentation: chance of an erased rectangle.")] = 0.0,
    flip: Annotated[
        float, typer.Option(min=0, max=1, help="Augmentation: chance of a left-right mirror; the heart has a side.")
    ] = 0.0,
    precision: Annotated[
        str, typer.Option(help="Lightning's precision: 32-true, bf16-mixed ...; auto: bf16-mixed on a GPU that has it.")
    ] = "auto",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the whole network (torch.compile), on one device.")
    ] = False,
    accelerator: Annotated[str, typer.Option(help="Lightning's accelerator: auto, cpu, gpu ...")] = "auto",
    devices: Annotated[str, typer.Option(help="Lightning's devices: auto, or how many; one process each.")] = "auto",
    num_nodes: Annotated[int, typer.Option(min=1, help="Machines, each of which runs this command (torchrun).")] = 1,
    strategy: Annotated[
        Strategy,
        typer.Option(help="What each of several processes keeps of weights and Adam's state: all, or a share."),
    ] = Strategy.ddp,
    val_fraction: Annotated[float, typer.Option(help="Share of the training patients kept for validation.")] = 0.1,
    train_images: Annotated[int, typer.Option(min=2, help="Phantoms to train on (--data phantom).")] = 2500,
    logger: Annotated[
        str, typer.Option(metavar="NAMES", help="Loggers: csv, tensorboard, wandb, mlflow; several with commas.")
    ] = "csv,tensorboard",
    cache: Cache = None,
    workers: Workers = 2,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier on the phantom or on the training split of a data set; its test split is never read.

    Writes OUT/model.safetensors (the weights that the other commands take), OUT/segmenter.safetensors where a segmenter
    drew the masks, OUT/validation.txt, the films of a real data set that were held out (axnet evaluate --calibrate),
    OUT/films.txt and OUT/patients.txt, all that it saw (axnet evaluate says which test films and patients are among
    them),
    OUT/config.yaml with all settings (--config repeats the run), OUT/checkpoints for --resume, and logs in OUT/logs.
    docs/training.md says what the options do and where they come from.
    """
    from contextlib import nullcontext

    from axnet.data.uncertainty import read_policy
    from axnet.devices import device_of
    from axnet.models import Preprocessing
    from axnet.progress import SILENT, Progress
    from axnet.train import Augmentation, DataConfig, FitConfig, find_segmenter, open_part, with_blank_masks
    from axnet.train import fit as train_classifier
    from axnet.train.anatomy import SEGMENTER_EPOCHS, SEGMENTER_NAME
    from axnet.train.fitting import check_processes
    from axnet.train.labels import counts

    config = FitConfig(
        out=str(out),
        architecture=architecture.value,
        options=_options(architecture, backbone, num_maps, reduction, input_size),
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule.value,
        loss=loss.value,
        pos_weight=pos_weight,
        label_smoothing=label_smoothing,
        mixup=mixup,
        sampling=sampling.value,
        layer_decay=layer_decay,
        ema_decay=ema_decay or None,
        precise_bn=precise_bn,
        augmentation=Augmentation(degrees, translate, scale, contrast, flip, gamma, noise, blur, erase, moved),
        pretrained=None if pretrained == "none" else pretrained,
        compile=compile,
        precision=precision,
        accelerator=accelerator,
        devices=int(devices) if devices.isdigit() else devices,
        num_nodes=num_nodes,
        strategy=strategy.value,
        seed=seed,
        resume=resume,
        progress=not quiet,
        logger=tuple(logger.split(",")),
    )
    policy = None if uncertain is None else read_policy(uncertain)
    if isinstance(policy, dict):  # its content repeats the run, whatever becomes of the file
        context.params["uncertain"] = json.dumps(policy)
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, expected a number between 0 and 1.")
    if not processes.started_by_another() and (devices.isdigit() or devices == "auto"):
        check_processes(config, num_nodes * _processes(accelerator, devices))
    writable_folder(out, "--out")
    source = DataConfig(
        data=data,
        root=root,
        seed=seed,
        train_images=train_images,
        workers=workers,
        cache=None if cache is None else str(cache),
        split=split,
        uncertain=policy,
        blank=blank,
        views=None if views is None else tuple(views.split(",")),
    )
    if source.packed:
        config = replace(config, workers=workers)  # which read while it trains
    first = processes.rank() == 0
    progress = Progress(typer.echo, bars=not quiet) if first else SILENT
    if first and not resume:
        write_settings(context, out)
    guided = architecture is Architecture.anatomy_xnet
    drawn_by = out / SEGMENTER_NAME
    prepared = CACHE_VARIABLE in os.environ
    given = source.dataset.masked and source.dataset.real  # packed with the films
    if ((resume and segmenter is None and not given) or prepared) and drawn_by.is_file():
        segmenter = drawn_by  # put there by the run that is resumed, or by the command that started these processes
    trained = organ_root is not None and segmenter is None
    with progress.step("training the segmenter", SEGMENTER_EPOCHS, "epochs") if trained else nullcontext() as done:
        drawer = find_segmenter(
            source, needed=guided, segmenter=segmenter, organ_root=organ_root, out=out, seed=seed, progress=not quiet
        )
        if done is not None:
            done(SEGMENTER_EPOCHS)
    if drawer is not None:  # on a GPU where the training is
        drawer.to(device_of("auto" if accelerator in ("auto", "gpu", "cuda") else "cpu"))
    if not processes.started_by_another() and (count := _processes(accelerator, devices)) > 1:
        with tempfile.TemporaryDirectory() as shared:  # read and drawn once, then opened by all
            source = replace(source, cache=source.cache or shared)
            open_part(source, "train", Preprocessing(size=size), segmenter=drawer, progress=progress)
            processes.run_together(count, {CACHE_VARIABLE: str(source.cache)})
        return
    source = replace(source, cache=os.environ.get(CACHE_VARIABLE, source.cache))
    everything = open_part(
        source, "train", Preprocessing(size=size), segmenter=drawer, progress=SILENT if prepared else progress
    )
    if not guided:
        everything = with_blank_masks(everything)
    train, validation = everything.split_by_patient(val_fraction, seed)
    if first:
        if not resume:
            _write_lists(out, source, everything, validation)
        typer.echo(
            f"train: {len(train)} images, validation: {len(validation)}, split {everything.split_name} "
            f"{everything.split_hash[:12]}"
        )
        if "uncertain" in source.dataset.options:
            typer.echo(counts(train.labels, train.findings))
    with progress.step("training the classifier", epochs * len(train)) as done:
        result = train_classifier(config, train, validation)
        done(result.films)
    if not first:
        return
    if resume:  # only now is it known that the run in the folder was begun with these
        write_settings(context, out)
        _write_lists(out, source, everything, validation)
    typer.echo(f"validation AUC {result.val_auc:.4f} after {result.steps} steps, {result.seconds:.0f} s")
    if not math.isnan(result.other_auc):
        names = ("those of training", f"those of {min(precise_bn, len(train)):,} films as they are read")
        kept, other = names[result.precise_bn], names[not result.precise_bn]
        typer.echo(f"statistics of normalisation: {kept} (with {other}: AUC {result.other_auc:.4f})")
    typer.echo(str(result.weights))


def _write_lists(out: Path, source: DataConfig, everything: XraySet, validation: XraySet) -> None:
    """Which films a run on a real data set saw, and which of them it held out."""
    from axnet.data.files import replacing

    lists: dict[str, tuple[str, ...]] = {}
    if source.dataset.real:  # drawn ones have no names of their own
        lists[FILMS_NAME] = everything.ids
        lists[PATIENTS_NAME] = tuple(sorted(source.patients_of(everything.patients)))
        if not source.members:
            lists[VALIDATION_NAME] = validation.ids
    for name, ids in lists.items():
        with replacing(out / name) as partial:
            partial.write_text("".join(f"{film}\n" for film in ids), encoding="utf-8")


def _processes(accelerator: str, devices: str) -> int:
    """How many devices, and so processes, a run on this machine takes."""
    import torch

    if devices.isdigit():
        return int(devices)
    on_gpu = accelerator in ("auto", "gpu", "cuda")
    return torch.cuda.device_count() if on_gpu and (devices == "auto" or devices == "-1") else 1


def _options(
    architecture: Architecture, backbone: str, num_maps: Maps, reduction: float, input_size: int | None
) -> dict[str, Any]:
    options: dict[str, Any] = {"backbone": backbone}
    if input_size is not None:
        options["input_size"] = input_size
    if architecture is Architecture.densenet_gap:
        return options
    return {**options, "num_maps": 1 if num_maps is Maps.one else "classes", "reduction": reduction}
