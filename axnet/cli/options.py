"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from axnet.data.sets import DEFAULT, ORGANS_ONLY, names

if TYPE_CHECKING:
    from axnet.data.folder import ImageFile

UNREADABLE = (ValueError, OSError, ImportError)
"""What reading an image may raise: it is damaged, it is gone, or its decoder is not installed."""


_NAMES = ", ".join(name for name in names() if name not in (DEFAULT, *ORGANS_ONLY))
Data = Annotated[
    str,
    typer.Option(
        help=f"Data set: {DEFAULT}, which is built in, or, in --root, {_NAMES}; several with commas are joined.",
        metavar="NAME",
    ),
]
Root = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Folder of the data set as it is downloaded, or a folder or URL of axnet prepare; several with commas.",
        metavar="FOLDER",
    ),
]
Uncertain = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="What uncertain labels become: zeros, ones, ignore (the default), smooth, smooth(LOW,HIGH), or for "
        "each finding a file POLICY.json."
    ),
]
Blank = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="What blank labels count as: zeros or ignore; without it what the data set takes them for."),
]
Views = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Views to take, comma-separated: frontal, lateral, PA, AP, all; without it the data set's own."),
]
SplitName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--split", help="Split by the data set's name for it, or a .txt file that lists its films."),
]
SegmenterFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--segmenter", help="Weights of a segmenter (axnet segment fit) that draws the anatomy masks."),
]
OrganRoot = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="Organ mask set (index.csv, images/, masks/) to train a segmenter on when --segmenter is absent."
    ),
]
DicomOut = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="Folder for DICOM objects that refer to their DICOM film: FILM.seg.dcm, and of predict FILM.sr.dcm.",
        metavar="FOLDER",
    ),
]
Cache = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder for memory-mapped images and masks, for sets larger than the memory."),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1 ...; auto: a GPU where torch has one."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read or render images; 0 for none.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress bars; long steps still say when they begin and end.")
]


def writable_file(path: Path, option: str) -> Path:
    """A file to be written at the end of the work, whose folder is made now; ValueError where that cannot be."""
    if path.is_dir():
        raise ValueError(f"{option} is '{path}', a folder, expected a file.")
    writable_folder(path.parent, option)
    return path


def writable_folder(path: Path, option: str) -> Path:
    """A folder to be written to, made now; ValueError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{option}: folder '{path}' cannot be made ({error.strerror}).") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: folder '{path}' cannot be written to.")
    return path


def places(files: list[ImageFile], folder: Path, option: str) -> dict[str, Path]:
    """Where what is made of each film goes, by its id: inside the folder, below it as the film lies below its own.

    Names end as the film's does; a suffix is to be added. ValueError where two films have the same.
    """
    found: dict[str, Path] = {}
    taken: set[Path] = set()
    for file in files:
        inside = Path(file.id)
        if inside.is_absolute() or ".." in inside.parts:
            inside = Path(file.path.name)
        target = folder / inside
        if target in taken:
            raise ValueError(f"images holds two files named '{inside}', expected different names with {option}.")
        taken.add(target)
        found[file.id] = target
    return found


def report_failed(failed: list[tuple[Path, str]]) -> None:
    """Name the files that could not be read, each with the reason, and end with exit code 1 where there are any."""
    for file, reason in failed:
        typer.echo(f"failed: {file}: {reason}", err=True)
    if failed:
        raise typer.Exit(1)
