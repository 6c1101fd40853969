"""`axnet export`: a classifier as a program that runs without axnet."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from axnet.cli.options import writable_file


class Format(str, Enum):
    """As axnet.export.FORMATS; here so that help needs no torch."""

    onnx = "onnx"
    pt2 = "pt2"
    aoti = "aoti"


def export(
    weights: Annotated[Path, typer.Argument(help="Classifier written by axnet fit.")],
    out: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 for pt2 and aoti.")],
    format: Annotated[
        Format,
        typer.Option(help="onnx, pt2 (torch.export), or aoti (compiled by AOTInductor, for Python and C++)."),
    ] = Format.onnx,
) -> None:
    """Write a classifier as a program of standard ops: for onnxruntime, torch.export.load, or C++.

    It takes images with grey values in [0, 1] and, for Anatomy-XNet, lung and heart masks, any number of them, and
    returns logits, calibrated probabilities and probability maps. Findings, preprocessing, calibration and operating
    points are in its metadata under "axnet.json". Its outputs are compared with the classifier's before the file
    appears. Not for medical use.
    """
    from axnet.export import export as write

    writable_file(out, "--out")
    worst = write(weights, out, format.value, typer.echo)
    typer.echo(f"{format.value} program, outputs within {worst:.0e} of the classifier's: {out}")
