"""`axnet predict`: score image files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Optional

import typer

from axnet.cli.films import Films, Part, named, parts
from axnet.cli.options import Device, DicomOut, SegmenterFile, report_failed, writable_file, writable_folder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from axnet.models import ClassifierInfo
    from axnet.train.shares import Share

_AT_A_TIME = 64  # images read, drawn and scored together


def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Radiographs (PNG, JPEG, DICOM), folders of them, or one folder or URL of axnet prepare.",
            metavar="IMAGES...",
        ),
    ],
    weights: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Classifier written by axnet fit; without it the one that comes with axnet."),
    ] = None,
    segmenter: SegmenterFile = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="CSV file to write; without it the result goes to the terminal."),
    ] = None,
    overlays: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for a PNG per image: organs outlined, the likeliest finding's map in red."),
    ] = None,
    dicom_out: DicomOut = None,
    device: Device = "auto",
) -> None:
    """Write the probability of every finding for frontal radiographs, one row per image.

    The classifier that comes with axnet, and any whose checkpoint holds a calibration, also make calls at their stored
    operating points, with the cardiothoracic ratio and flags; a flagged film (no plausible frontal chest, inverted grey
    values) gets no call.

    Folders are searched with all below them, and an image is known by its path there. Files that cannot be read are
    listed at the end, and the exit code is then 1. The anatomy masks come from --segmenter, or from
    segmenter.safetensors beside the weights; packed films may bring theirs. Processes that torchrun starts share the
    films out, and the first writes what one alone would. Not for medical use.
    """
    from axnet.train.shares import shared_out

    with shared_out() as share:
        failed = _predict(share, images, weights, segmenter, out, overlays, dicom_out, device)
    report_failed(failed)


def _predict(
    share: Share,
    images: list[str],
    weights: Path | None,
    segmenter: Path | None,
    out: Path | None,
    overlays: Path | None,
    dicom_out: Path | None,
    device: str,
) -> list[tuple[Path, str]]:
    """Returns the films that failed, for the first process."""
    import csv

    from axnet.devices import device_of, in_channels_last
    from axnet.models import AnatomyXNet, load_classifier
    from axnet.predictor import shipped
    from axnet.train import predict as score
    from axnet.train import segmenter_for, with_blank_masks, with_predicted_masks

    place = device_of(device)
    films = named(images)
    if out is not None:
        writable_file(out, "--out")
    if overlays is not None:
        writable_folder(overlays, "--overlays")
    if dicom_out is not None:
        writable_folder(dicom_out, "--dicom-out")
    own = weights is None
    weights = shipped() if weights is None else weights
    model, info = load_classifier(weights)
    if own or overlays is not None or dicom_out is not None or info.calibration is not None:
        return _read(share, place, model, info, weights, segmenter, films, out, overlays, dicom_out)
    guided = isinstance(model, AnatomyXNet)
    in_channels_last(model.to(place))
    masked = films.masked and segmenter is None
    drawer = segmenter_for(weights, segmenter).to(place) if guided and not masked else None
    failed: list[tuple[Path, str]] = []
    scored = 0

    def rows(indices: Sequence[int]) -> Part:
        lost: list[tuple[Path, str]] = []
        data = films.read(indices[0], indices[-1] + 1, info.preprocessing, lost)
        if data is None:
            return [], lost
        if not guided:
            data = with_blank_masks(data)
        elif drawer is not None:
            data = with_predicted_masks(data, drawer)
        scores = score(model, data, info.preprocessing)
        return [(name, *(f"{value:.6f}" for value in row)) for name, row in zip(data.ids, scores, strict=True)], lost

    with _opened(out, share) as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", *info.classes))
        for found, lost in parts(share, len(films.files), _AT_A_TIME, rows):
            writer.writerows(found)
            scored += len(found)
            failed += lost
            stream.flush()
    if share.rank == 0:
        _say(scored, failed, out)
    return failed


def _say(scored: int, failed: list[tuple[Path, str]], out: Path | None) -> None:
    if out is not None:
        note = f", {len(failed)} failed" if failed else ""
        typer.echo(f"{scored} images scored{note}: {out}")


def _read(
    share: Share,
    device: torch.device,
    model: nn.Module,
    info: ClassifierInfo,
    weights: Path,
    segmenter: Path | None,
    films: Films,
    out: Path | None,
    overlays: Path | None,
    dicom_out: Path | None,
) -> list[tuple[Path, str]]:
    """Calls, cardiothoracic ratio and flags; masks by the segmenter named, that beside weights, or the shipped one."""
    from axnet.cli.reading import read, summary
    from axnet.predictor import Predictor
    from axnet.train.anatomy import segmenter_of

    if films.packed and dicom_out is not None:
        raise ValueError("images are packed films, expected DICOM files for --dicom-out.")
    predictor = Predictor(model, info, segmenter_of(weights, segmenter)).to(device)
    with _opened(out, share) as stream:
        scored, failed = read(predictor, films, stream, out is not None, overlays, dicom_out, share)
    if share.rank == 0:
        _say(scored, failed, out)
        if expected := summary(predictor):
            typer.echo(expected)
    return failed


@contextmanager
def _opened(out: Path | None, share: Share) -> Iterator[IO[str]]:
    """The terminal, or a file that takes the name of out when it is whole; of several processes the first writes."""
    if share.rank:
        yield StringIO()
        return
    if out is None:
        yield sys.stdout
        return
    from axnet.data.files import replacing

    with replacing(out) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        yield stream
