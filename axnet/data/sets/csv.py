"""Any table with a column of image files and columns of labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from axnet.data.findings import CHEXPERT_FINDINGS, NIH_FINDINGS, canonical
from axnet.data.labelled import Films, Item, LabelledFilms, need_columns, raw_labels, read_table
from axnet.data.sets import DataSet, Request, absent, looks_like
from axnet.data.splits import by_patient, check_disjoint, listed
from axnet.data.uncertainty import Policy
from axnet.paths import StrPath

_PATHS = ("path", "Path", "image", "image_path", "filename", "file", "Image Index", "ImageID", "image_id")


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are; a file TABLE.json beside TABLE.csv may say it, with these names.

    path: of the images, relative to images (a folder, itself relative to the table's); without it the first of the
    usual names. labels: without it all further columns that hold 0, 1, -1 and blanks alone, and those that are named
    as findings. patient: without it every
    film is a patient's own. split: which split a film is of; without it patients are shared out at random into train
    and test. view: PA, AP, lateral and so on.
    """

    path: str | None = None
    labels: tuple[str, ...] | None = None
    patient: str | None = None
    split: str | None = None
    view: str | None = None
    images: str = "."


class CSVDataset(LabelledFilms):
    """Films of a CSV table (also .csv.gz), with labels 0, 1, -1 for uncertain, and blank.

    root: the table, or a folder with one CSV file. split: a value of the split column; without such a column "train" or
        "test", where test_fraction and seed share the patients out; "all"; or a .txt file that lists paths of
        the table.
    columns: what the columns are (Columns); None for what TABLE.json says, or the usual names.
    uncertain, blank: what -1 and blank become; blank is left out by default, since no one says what it means here.
    The rest, items and attributes as axnet.data.labelled.LabelledFilms describes; ids are the paths of the table, and
    all views are taken by default.
    Raises FileNotFoundError for an absent table or image, ValueError for content that contradicts itself.
    """

    def __init__(
        self,
        root: StrPath,
        split: str = "all",
        *,
        columns: Columns | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        findings: Sequence[str] | None = None,
        allow_absent: bool = False,
        views: str | Sequence[str] = "all",
        uncertain: Policy = "ignore",
        blank: str = "ignore",
        size: int | None = None,
        masks: Callable[[str], npt.NDArray[Any]] | None = None,
        transform: Callable[[Item], Item] | None = None,
    ) -> None:
        """Read the table, and look for the images; the class describes the arguments."""
        path = _find(Path(root))
        table = read_table(path)
        known = _described(path) if columns is None else columns
        image = known.path or next((name for name in _PATHS if name in table.columns), "path")
        named = [name for name in (image, known.patient, known.split, known.view) if name is not None]
        need_columns(table, named, path)
        labels = _label_columns(table, known, named, path)
        found = tuple(canonical(label) for label in labels)
        if len(set(found)) < len(found):
            raise ValueError(f"table '{path}' has the labels {labels}, two of which are one finding.")
        raw = raw_labels(table, labels, path)
        names = table[image].str.strip()
        for column in (image, known.patient):  # films without a patient would all be one's
            empty = [] if column is None else np.flatnonzero(table[column].str.strip() == "").tolist()
            if len(empty):
                raise ValueError(f"table '{path}' has no {column} in row {empty[0] + 1}.")
        rows = pd.DataFrame(
            {
                "image": names,
                "path": [str(path.parent / known.images / name) for name in names],
                "patient": names if known.patient is None else table[known.patient].str.strip(),
                "view": "" if known.view is None else table[known.view].str.strip(),
            }
        )
        if known.split is None:
            sides = pd.Series(by_patient(rows["patient"].tolist(), test_fraction, seed), index=rows.index)
        else:
            sides = table[known.split].str.strip()
            given = {side: group for side, group in rows["patient"].groupby(sides) if side}  # a blank is no split
            check_disjoint(given, f"table '{path}'")
        there = sorted({*sides, "all"} - {""})
        own = listed(split) is not None
        if split not in there and not own:
            raise ValueError(f"split is {split!r}, expected one of {tuple(there)}, which table '{path}' has.")
        chosen = np.ones(len(rows), dtype=bool) if split == "all" or own else np.asarray(sides == split)
        super().__init__(
            Films(path, rows[chosen].reset_index(drop=True), raw[chosen], found),
            root=path.parent,
            split=split,
            findings=findings,
            allow_absent=allow_absent,
            views=views,
            uncertain=uncertain,
            blank=blank,
            size=size,
            masks=masks,
            transform=transform,
        )
        drawn = "" if known.split is not None or split == "all" or own else f"-random-{test_fraction:g}-seed-{seed}"
        self.split_name = f"{path.stem}-{Path(split).stem if own else split}{drawn}"


def _find(root: Path) -> Path:
    if root.is_file():
        return root
    found = sorted(path for path in root.glob("*.csv*") if path.suffix in (".csv", ".gz") and path.name[0] != ".")
    if not found:
        raise absent(root, "CSV file", "csv")
    if len(found) > 1:
        other = looks_like(root, "csv")
        if other is not None:
            raise absent(root, "single CSV file", "csv")
        names = ", ".join(path.name for path in found[:4])
        raise ValueError(f"root '{root}' holds {len(found)} CSV files ({names}), expected one, or the path of one.")
    return found[0]


def _described(path: Path) -> Columns:
    """What the file beside the table says."""
    file = path.with_name(path.name.removesuffix(".gz").removesuffix(".csv") + ".json")
    if not file.is_file():
        return Columns()
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{file}' cannot be read as JSON ({error}).") from error
    accepted = [field.name for field in fields(Columns)]
    strange = [name for name in said if name not in accepted] if isinstance(said, dict) else ["no mapping"]
    if strange:
        raise ValueError(f"'{file}' has the entry {strange[0]!r}, expected {accepted}.")
    said = {name: value for name, value in said.items() if value is not None}
    for name, value in said.items():
        if name == "labels":
            if not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
                raise ValueError(f"'{file}' has labels {value!r}, expected a list of one or more columns.")
        elif not isinstance(value, str):
            raise ValueError(f"'{file}' has {name} {value!r}, expected a text.")
    given: dict[str, Any] = {name: tuple(value) if name == "labels" else value for name, value in said.items()}
    return Columns(**given)


def _label_columns(table: pd.DataFrame, known: Columns, named: Sequence[str], path: Path) -> list[str]:
    if known.labels is not None:
        need_columns(table, known.labels, path)
        return list(known.labels)
    found = []
    for column in table.columns:
        if column in named or column.startswith("Unnamed"):
            continue
        try:
            if np.isfinite(raw_labels(table, [column], path)).any():
                found.append(str(column))
        except ValueError:
            if canonical(str(column)) in (*NIH_FINDINGS, *CHEXPERT_FINDINGS):
                raise  # what is named like a finding is not left out in silence
            continue
    if not found:
        raise ValueError(
            f"table '{path}' has no column of labels (0, 1, -1 or blank), expected some beside {list(named)}; it has "
            f"{list(table.columns)}."
        )
    return found


def _open(request: Request) -> CSVDataset:
    options = {"seed": request.seed, **request.options}
    return CSVDataset(request.root or "", request.split, findings=request.findings, **options)


DATASET = DataSet(
    title="the table",
    root="a CSV file with a column of image files and columns of labels, or the folder of one",
    open=_open,
    splits={"train": "train", "test": "test"},
    options=("allow_absent", "views", "uncertain", "blank", "columns", "test_fraction"),
)
