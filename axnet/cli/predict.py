"""`axnet predict`: score image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from axnet.cli.options import SegmenterFile

_SUFFIXES = (".png", ".jpg", ".jpeg")


def predict(
    images: Annotated[list[Path], typer.Argument(help="PNG or JPEG files, or folders of them.")],
    weights: Annotated[Path, typer.Option(help="Classifier written by axnet fit.")],
    segmenter: SegmenterFile = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="CSV file to write; without it the table goes to the terminal."),
    ] = None,
) -> None:
    """Write the probability of every finding for frontal radiographs, one row per image.

    The anatomy masks come from --segmenter, or from segmenter.safetensors beside the weights. Not for medical use.
    """
    import csv
    import sys

    from axnet.models import AnatomyXNet, load_classifier
    from axnet.train import predict as score
    from axnet.train import read_images, segmenter_for, with_blank_masks, with_predicted_masks

    model, info = load_classifier(weights)
    data = read_images(_files(images), info.preprocessing)
    if isinstance(model, AnatomyXNet):
        data = with_predicted_masks(data, segmenter_for(weights, segmenter))
    else:
        data = with_blank_masks(data)
    rows = score(model, data, info.preprocessing)
    stream = sys.stdout if out is None else out.open("w", newline="")
    try:
        writer = csv.writer(stream)
        writer.writerow(("image", *info.classes))
        writer.writerows((name, *(f"{value:.6f}" for value in row)) for name, row in zip(data.ids, rows, strict=True))
    finally:
        if out is not None:
            stream.close()
    if out is not None:
        typer.echo(f"{len(rows)} images scored: {out}")


def _files(paths: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
            if not found:
                raise ValueError(f"folder '{path}' holds no PNG or JPEG image.")
            files += found
        else:
            files.append(path)
    return files
