"""`axnet predict` with a calibrated classifier: calls, cardiothoracic ratio, flags and overlays."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from axnet.cli.films import Part, parts
from axnet.cli.options import UNREADABLE, places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from axnet.cli.films import Films
    from axnet.predictor import Prediction, Predictor
    from axnet.segment import Anatomy
    from axnet.train.shares import Share

_AT_A_TIME = 16


def read(
    predictor: Predictor,
    films: Films,
    stream: IO[str],
    table: bool,
    overlays: Path | None,
    dicom_out: Path | None,
    share: Share,
) -> tuple[int, list[tuple[Path, str]]]:
    """Read films and write what is found, as a CSV table or in lines to look at.

    Returns how many were read, and what failed, with why: of films that were read their DICOM objects.
    """
    files = films.files
    pictures = {} if overlays is None else places(files, overlays, "--overlays")
    objects = {} if dicom_out is None else places(files, dicom_out, "--dicom-out")
    failed: list[tuple[Path, str]] = []
    scored = 0
    writer = csv.writer(stream)
    if table:
        calls = [f"{finding} call" for finding in predictor.findings]
        writer.writerow(("image", *predictor.findings, *calls, "CTR", "flags"))

    def work(indices: Sequence[int]) -> Part:
        rows: list[Any] = []
        lost: list[tuple[Path, str]] = []
        for index, found in _read(predictor, films, indices, lost):
            file = files[index]
            rows.append((_row if table else _text)(file.id, predictor, found))
            if file.id in pictures:
                picture = pictures[file.id]
                _overlay(picture.with_name(f"{picture.name}.png"), films.pixels(index), found)
            if file.id in objects:
                try:
                    write_dicom(objects[file.id], file.path, found.anatomy, found)
                except UNREADABLE as error:
                    lost.append((file.path, " ".join(str(error).split())))
        return rows, lost

    for rows, lost in parts(share, len(files), _AT_A_TIME, work):
        if table:
            writer.writerows(rows)
        else:
            stream.writelines(rows)
        scored += len(rows)
        failed += lost
        stream.flush()
    return scored, failed


def _read(
    predictor: Predictor, films: Films, indices: Sequence[int], failed: list[tuple[Path, str]]
) -> Iterator[tuple[int, Prediction]]:
    """Pairs of position and Prediction; a film that fails does not take its batch with it."""
    together: list[Prediction] = []
    with suppress(*UNREADABLE):
        together = films.found(predictor, indices)
    if together:
        yield from zip(indices, together, strict=True)
        return
    for index in indices:
        try:
            found = films.found(predictor, [index])[0]
        except UNREADABLE as error:
            failed.append((films.files[index].path, " ".join(str(error).split())))
        else:
            yield index, found


def _row(name: str, predictor: Predictor, found: Prediction) -> list[str]:
    probabilities = [f"{found.probabilities[finding]:.6f}" for finding in predictor.findings]
    calls = [str(int(found.positive[f])) if f in found.positive else "" for f in predictor.findings]
    ratio = "" if math.isnan(found.anatomy.ctr) else f"{found.anatomy.ctr:.4f}"
    return [name, *probabilities, *calls, ratio, "; ".join(found.flags)]


def _text(name: str, predictor: Predictor, found: Prediction) -> str:
    calibration = predictor.info.calibration
    limits = {} if calibration is None else dict(zip(predictor.findings, calibration.thresholds, strict=True))
    ratio = "unknown" if math.isnan(found.anatomy.ctr) else f"{found.anatomy.ctr:.3f}"
    lines = [f"{name}  CTR {ratio}"]
    if found.flags:
        lines.append(f"  no call is made: {'; '.join(found.flags)}")
    width = max(len("finding"), *map(len, found.probabilities))
    lines.append(f"  {'finding':{width}}  probability  call (operating point)")
    for finding, probability in sorted(found.probabilities.items(), key=lambda item: -item[1]):
        call = {True: "positive", False: "negative", None: "-"}[found.positive.get(finding)]
        point = f" ({limits[finding]:.3f})" if finding in found.positive else ""
        lines.append(f"  {finding:{width}}  {probability:11.1%}  {call}{point}")
    return "\n".join(lines) + "\n"


def _overlay(path: Path, film: NDArray[Any], found: Prediction) -> None:
    from axnet.report.overlay import write_overlay

    likeliest = max(found.probabilities, key=found.probabilities.__getitem__)
    write_overlay(path, film, found.anatomy.masks, found.map_of(likeliest))


def write_dicom(place: Path, film: Path, anatomy: Anatomy, found: Prediction | None = None) -> None:
    """The organs of a film as a DICOM segmentation, and what a classifier found as a structured report beside it.

    Raises ValueError and ImportError as axnet.report.dicom does; a film without organs gets a report alone.
    """
    from axnet.report.dicom import read_source, write_report, write_segmentation

    source = read_source(film)
    if found is not None:
        report = place.with_name(f"{place.name}.sr.dcm")
        write_report(report, source, found.probabilities, found.positive, anatomy.ctr, found.flags)
    if found is None or anatomy.masks.any():
        write_segmentation(segmentation_of(place), source, anatomy.masks)


def segmentation_of(place: Path) -> Path:
    """The file of a film's DICOM segmentation."""
    return place.with_name(f"{place.name}.seg.dcm")


def summary(predictor: Predictor) -> str:
    """How many films of 1,000 like the validation films are called, by finding."""
    calibration = predictor.info.calibration
    if calibration is None:
        return ""
    pairs = zip(predictor.findings, calibration.positives_per_1000, strict=True)
    expected = ", ".join(f"{finding} {count:.0f}" for finding, count in pairs if count is not None)
    return f"expected positives of 1,000 films like {calibration.films}: {expected}"
