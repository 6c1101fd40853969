"""`axnet predict`: score image files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Optional

import typer

from axnet.cli.options import UNREADABLE, SegmenterFile, report_failed, writable_file

_AT_A_TIME = 64  # images read, drawn and scored together


def predict(
    images: Annotated[list[Path], typer.Argument(help="Radiographs (PNG, JPEG, DICOM), or folders of them.")],
    weights: Annotated[Path, typer.Option(help="Classifier written by axnet fit.")],
    segmenter: SegmenterFile = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="CSV file to write; without it the table goes to the terminal."),
    ] = None,
) -> None:
    """Write the probability of every finding for frontal radiographs, one row per image.

    Folders are searched with all below them, and an image is known by its path there. Files that cannot be read are
    listed at the end, and the exit code is then 1. The anatomy masks come from --segmenter, or from
    segmenter.safetensors beside the weights. Not for medical use.
    """
    import csv

    from axnet.data import read_image
    from axnet.data.folder import image_files
    from axnet.models import AnatomyXNet, load_classifier
    from axnet.train import predict as score
    from axnet.train import segmenter_for, with_blank_masks, with_predicted_masks
    from axnet.train.sources import unlabelled

    files = image_files(images, file_id=str)
    if out is not None:
        writable_file(out, "--out")
    model, info = load_classifier(weights)
    drawer = segmenter_for(weights, segmenter) if isinstance(model, AnatomyXNet) else None
    failed: list[tuple[Path, str]] = []
    with _opened(out) as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", *info.classes))
        for start in range(0, len(files), _AT_A_TIME):
            stored, ids = [], []
            for file in files[start : start + _AT_A_TIME]:
                try:
                    stored.append(info.preprocessing.store(read_image(file.path)))
                    ids.append(file.id)
                except UNREADABLE as error:
                    failed.append((file.path, " ".join(str(error).split())))
            if not ids:
                continue
            data = unlabelled(stored, ids, info.preprocessing)
            data = with_blank_masks(data) if drawer is None else with_predicted_masks(data, drawer)
            for name, row in zip(ids, score(model, data, info.preprocessing), strict=True):
                writer.writerow((name, *(f"{value:.6f}" for value in row)))
            stream.flush()
    if out is not None:
        note = f", {len(failed)} failed" if failed else ""
        typer.echo(f"{len(files) - len(failed)} images scored{note}: {out}")
    report_failed(failed)


@contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    """The terminal, or a file that takes the name of out when it is whole."""
    if out is None:
        yield sys.stdout
        return
    from axnet.data.files import replacing

    with replacing(out) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        yield stream
