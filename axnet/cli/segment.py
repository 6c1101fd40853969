"""`axnet segment`: train the anatomy segmenter, draw lungs and heart."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from axnet.cli.options import (
    UNREADABLE,
    Device,
    DicomOut,
    Quiet,
    Seed,
    places,
    report_failed,
    writable_file,
    writable_folder,
)

if TYPE_CHECKING:
    from axnet.data.folder import ImageFile
    from axnet.report import Thumbnail
    from axnet.segment import Anatomy, Segmenter

app = typer.Typer(help="Draw lungs and heart on chest X-rays.", no_args_is_help=True)


class Preset(str, Enum):
    """Sizes of the U-Net."""

    standard = "standard"
    small = "small"
    tiny = "tiny"


class Method(str, Enum):
    """Ways to train."""

    mean_teacher = "mean-teacher"
    supervised = "supervised"


@app.command()
def fit(
    out: Annotated[Path, typer.Option(help="File for the weights.")] = Path("segmenter.safetensors"),
    data: Annotated[
        str,
        typer.Option(help="Organ masks: wingspan, a folder in --root, or phantom, which is built in.", metavar="NAME"),
    ] = "wingspan",
    root: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the organ mask set: index.csv, images/, masks/left_lung, right_lung, heart."),
    ] = None,
    unlabelled: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Radiographs without masks: an NIH ChestX-ray14 folder (its train_val list), or any folder."),
    ] = None,
    method: Annotated[
        Optional[Method],  # noqa: UP045
        typer.Option(help="mean-teacher learns from --unlabelled too and is the default with it; else supervised."),
    ] = None,
    preset: Annotated[Preset, typer.Option(help="Size of the network.")] = Preset.standard,
    size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=16, help="Side in pixels at which the network works; without it the preset's."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 60,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 8,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-3,
    phantom_images: Annotated[int, typer.Option(min=6, help="Phantoms to train on (--data phantom).")] = 300,
    precision: Annotated[str, typer.Option(help="Lightning's precision: 32-true, bf16-mixed ...")] = "32-true",
    accelerator: Annotated[str, typer.Option(help="Lightning's accelerator: auto, cpu, gpu ...")] = "auto",
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run beside --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a segmenter and print its Dice on the validation and test images."""
    from axnet.data import open_unlabelled
    from axnet.data.sets import Request, find
    from axnet.segment import PRESETS, evaluate_segmenter, fit_segmenter

    writable_file(out, "--out")
    if method is Method.mean_teacher and unlabelled is None:
        raise ValueError("unlabelled is missing, expected a folder of radiographs for --method mean-teacher.")
    config = PRESETS[preset.value]
    if size is not None:
        config = replace(config, size=size)
    source = find(data, organs=True, root=None if root is None else str(root))
    assert source.open_organs is not None
    counts = {"train": phantom_images, "val": 60, "test": 60}
    parts = {
        split: source.open_organs(Request(split, root=str(root), seed=seed, count=count, size=config.size))
        for split, count in counts.items()
    }
    segmenter = fit_segmenter(
        parts["train"],
        parts["val"],
        None if unlabelled is None or method is Method.supervised else open_unlabelled(unlabelled),
        config=config,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        out=out.parent / f"{out.stem}-checkpoints",
        resume=resume,
        accelerator=accelerator,
        precision=precision,
        progress=not quiet,
    )
    segmenter.save(out)
    for name, measures in (
        ("validation", segmenter.training_record["validation"]),
        ("test", evaluate_segmenter(segmenter, parts["test"])),
    ):
        for organ, values in measures.items():
            typer.echo(f"{name:10}  {organ:10}  " + "  ".join(f"{key} {value:.4f}" for key, value in values.items()))
    typer.echo(str(out))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Radiographs (PNG, JPEG, DICOM), or folders of them.")],
    weights: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Weights of a segmenter (axnet segment fit); without them the one that comes with axnet."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Table of masks (.parquet), or a folder for PNG masks.")] = (
        Path("anatomy.parquet")
    ),
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    device: Device = "auto",
    sheet: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="HTML file for a contact sheet of the --sheet-films films of the lowest quality."),
    ] = None,
    sheet_films: Annotated[int, typer.Option(min=1, help="Films on the contact sheet.")] = 40,
    dicom_out: DicomOut = None,
) -> None:
    """Draw lungs and heart, and print the cardiothoracic ratio, the quality and what is implausible of every image.

    A table has one row per image (axnet.data.MaskTable reads it); a folder gets ORGAN/IMAGE.png (1 bit; x.dcm.png for
    x.dcm) and anatomy.csv (image, ctr, quality, flags). Folders are searched with all below them, and an image is known
    by its path there. Images that are there already are left out, so a run can be stopped and
    started again. Files that cannot be read are listed at the end, and the exit code is then 1.
    """
    from axnet.cli.reading import segmentation_of, write_dicom
    from axnet.data.folder import image_files
    from axnet.devices import device_of
    from axnet.segment import Segmenter, load_pretrained
    from axnet.segment.output import open_sink

    files = image_files(images)
    if sheet is not None:
        writable_file(sheet, "--sheet")
    try:
        place = device_of(device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    segmenter = load_pretrained() if weights is None else Segmenter.load(weights)
    segmenter.to(place)
    # these make folders, so they come last
    (writable_file if out.suffix == ".parquet" else writable_folder)(out, "--out")
    objects = {} if dicom_out is None else places(files, writable_folder(dicom_out, "--dicom-out"), "--dicom-out")
    sink = open_sink(out, [file.id for file in files])
    waiting = [file for file in files if file.id not in sink]
    bare = [name for name, place in objects.items() if name in sink and not segmentation_of(place).is_file()]
    if bare:
        raise ValueError(
            f"--out holds '{bare[0]}' already, whose DICOM object is not in --dicom-out: give another --out."
        )
    failed: list[tuple[Path, str]] = []
    worst: list[Thumbnail] = []
    flagged = 0
    for start in range(0, len(waiting), batch_size):
        for file, anatomy in _predicted(segmenter, waiting[start : start + batch_size], failed):
            if file.id in objects:
                try:
                    write_dicom(objects[file.id], file.path, anatomy)
                except UNREADABLE as error:
                    failed.append((file.path, " ".join(str(error).split())))
                    continue
            sink.add(file.id, anatomy)
            ctr = "unknown" if anatomy.ctr != anatomy.ctr else f"{anatomy.ctr:.4f}"
            note = f"  ({'; '.join(anatomy.flags)})" if anatomy.flags else ""
            typer.echo(f"{file.id}  CTR {ctr}  quality {anatomy.quality:.2f}{note}")
            flagged += bool(anatomy.flags)
            if sheet is not None and (len(worst) < sheet_films or anatomy.quality < worst[-1].quality):
                worst.append(_thumbnail(file, anatomy))
                worst = sorted(worst, key=lambda t: t.quality)[:sheet_films]
        sink.flush()
    sink.finish()
    typer.echo(
        f"{len(waiting) - len(failed)} drawn ({flagged} flagged), {len(files) - len(waiting)} were there, "
        f"{len(failed)} failed"
    )
    if sheet is not None:
        _write_sheet(sheet, worst, len(waiting) - len(failed), flagged)
    report_failed(failed)


def _thumbnail(file: ImageFile, anatomy: Anatomy) -> Thumbnail:
    from axnet.data import read_image
    from axnet.report import Thumbnail

    return Thumbnail.of(file.id, read_image(file.path), anatomy.masks, anatomy.ctr, anatomy.quality, anatomy.flags)


def _write_sheet(sheet: Path, worst: list[Thumbnail], drawn: int, flagged: int) -> None:
    from axnet.report import write_sheet

    text = f"The {len(worst)} least certain of {drawn} films, of which {flagged} are flagged as implausible."
    typer.echo(str(write_sheet(sheet, worst, title="Anatomy: the least certain films", description=text)))


def _predicted(
    segmenter: Segmenter, files: list[ImageFile], failed: list[tuple[Path, str]]
) -> list[tuple[ImageFile, Anatomy]]:
    """Pairs of file and Anatomy; a file that fails does not take its batch with it."""
    try:
        return list(zip(files, segmenter.predict([file.path for file in files], batch_size=len(files)), strict=True))
    except UNREADABLE:
        pairs: list[tuple[ImageFile, Anatomy]] = []
        for file in files:
            try:
                pairs.append((file, segmenter.predict([file.path])[0]))
            except UNREADABLE as error:
                failed.append((file.path, " ".join(str(error).split())))
        return pairs
