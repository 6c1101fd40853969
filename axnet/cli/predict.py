"""`axnet predict`: score image files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Optional, Protocol

import typer

from axnet.cli.options import UNREADABLE, DicomOut, SegmenterFile, report_failed, writable_file, writable_folder

if TYPE_CHECKING:
    from torch import nn

    from axnet.data.folder import ImageFile
    from axnet.models import ClassifierInfo, Preprocessing
    from axnet.train import XraySet

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
) -> None:
    """Write the probability of every finding for frontal radiographs, one row per image.

    The classifier that comes with axnet, and any whose checkpoint holds a calibration, also make calls at their stored
    operating points, with the cardiothoracic ratio and flags; a flagged film (no plausible frontal chest, inverted grey
    values) gets no call.

    Folders are searched with all below them, and an image is known by its path there. Files that cannot be read are
    listed at the end, and the exit code is then 1. The anatomy masks come from --segmenter, or from
    segmenter.safetensors beside the weights; packed films may bring theirs. Not for medical use.
    """
    import csv

    from axnet.models import AnatomyXNet, load_classifier
    from axnet.predictor import shipped
    from axnet.train import predict as score
    from axnet.train import segmenter_for, with_blank_masks, with_predicted_masks

    films = _films(images)
    if out is not None:
        writable_file(out, "--out")
    if overlays is not None:
        writable_folder(overlays, "--overlays")
    if dicom_out is not None:
        writable_folder(dicom_out, "--dicom-out")
    model, info = load_classifier(shipped() if weights is None else weights)
    if weights is None or overlays is not None or dicom_out is not None or info.calibration is not None:
        _read(model, info, weights, segmenter, films, out, overlays, dicom_out)
        return
    guided = isinstance(model, AnatomyXNet)
    masked = films.masked and segmenter is None
    drawer = segmenter_for(weights, segmenter) if guided and not masked else None
    failed: list[tuple[Path, str]] = []
    with _opened(out) as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", *info.classes))
        for start in range(0, len(films), _AT_A_TIME):
            data = films.read(start, min(start + _AT_A_TIME, len(films)), info.preprocessing, failed)
            if data is None:
                continue
            if not guided:
                data = with_blank_masks(data)
            elif drawer is not None:
                data = with_predicted_masks(data, drawer)
            for name, row in zip(data.ids, score(model, data, info.preprocessing), strict=True):
                writer.writerow((name, *(f"{value:.6f}" for value in row)))
            stream.flush()
    if out is not None:
        note = f", {len(failed)} failed" if failed else ""
        typer.echo(f"{len(films) - len(failed)} images scored{note}: {out}")
    report_failed(failed)


def _read(
    model: nn.Module,
    info: ClassifierInfo,
    weights: Path | None,
    segmenter: Path | None,
    films: Films,
    out: Path | None,
    overlays: Path | None,
    dicom_out: Path | None,
) -> None:
    """Calls, cardiothoracic ratio and flags; masks by the segmenter named, that beside weights, or the shipped one."""
    from axnet.cli.reading import drawer_for, read, summary
    from axnet.predictor import Predictor

    if not isinstance(films, _Files):
        raise ValueError("images are packed films, expected image files for calls, overlays and DICOM objects.")
    predictor = Predictor(model, info, drawer_for(weights, segmenter))
    with _opened(out) as stream:
        failed = read(predictor, films.files, stream, out is not None, overlays, dicom_out)
    if out is not None:
        note = f", {len(failed)} failed" if failed else ""
        typer.echo(f"{len(films) - len(failed)} images scored{note}: {out}")
    if expected := summary(predictor):
        typer.echo(expected)
    report_failed(failed)


def _films(images: list[str]) -> Films:
    """What the user named: files and folders, or packed films."""
    from axnet.data.folder import image_files
    from axnet.data.packed.manifest import is_packed

    if not all(images):
        raise ValueError("images holds an empty name, expected files or folders.")
    if not any(is_packed(image) for image in images):
        return _Files(image_files(map(Path, images), file_id=str))
    if len(images) > 1:
        raise ValueError(f"images has {len(images)} entries with packed films among them, expected these alone.")
    return _Packed(images[0])


class Films(Protocol):
    """Films to be scored. masked: whether they bring masks."""

    masked: bool

    def __len__(self) -> int:
        """How many."""
        ...

    def read(
        self, start: int, stop: int, preprocessing: Preprocessing, failed: list[tuple[Path, str]]
    ) -> XraySet | None:
        """Those of these positions that can be read, None where none can; the others are added to failed."""
        ...


class _Files:
    masked = False

    def __init__(self, files: list[ImageFile]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def read(
        self, start: int, stop: int, preprocessing: Preprocessing, failed: list[tuple[Path, str]]
    ) -> XraySet | None:
        from axnet.data.image import read_stored
        from axnet.train.sources import unlabelled

        stored, ids = [], []
        for file in self.files[start:stop]:
            try:
                stored.append(preprocessing.store(read_stored(file.path)))
                ids.append(file.id)
            except UNREADABLE as error:
                failed.append((file.path, " ".join(str(error).split())))
        return unlabelled(stored, ids, preprocessing) if ids else None


class _Packed:
    def __init__(self, root: str) -> None:
        from axnet.data.packed.films import PackedFilms

        self.films = PackedFilms(root)
        self.set: XraySet | None = None
        self.masked = self.films.manifest.masks is not None

    def __len__(self) -> int:
        return len(self.films)

    def read(
        self, start: int, stop: int, preprocessing: Preprocessing, failed: list[tuple[Path, str]]
    ) -> XraySet | None:
        from axnet.train import collect

        if self.set is None:
            self.set = collect(self.films, preprocessing)
        try:
            part = self.set.subset(range(start, stop))
            part.images[:]  # read now, and kept for what follows
            return part
        except UNREADABLE:
            whole = []
        for index in range(start, stop):
            try:
                self.films.film(index)
                whole.append(index)
            except UNREADABLE as error:
                failed.append((Path(self.films.ids[index]), str(error)))
        return self.set.subset(whole) if whole else None


@contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    """The terminal, or a file that takes the name of out when it is whole."""
    if out is None:
        yield sys.stdout
        return
    from axnet.data.files import replacing

    with replacing(out) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        yield stream
