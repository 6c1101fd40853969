"""CheXpert as downloaded: tables, official splits, uncertain labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from axnet.data.findings import CHEXPERT_FINDINGS, canonical
from axnet.data.folder import find_images
from axnet.data.labelled import Films, Item, LabelledFilms, need_columns, raw_labels, read_table
from axnet.data.sets import DataSet, Request, absent
from axnet.data.splits import check_disjoint, listed
from axnet.data.uncertainty import Policy
from axnet.paths import StrPath

SPLITS = {
    "train": ("train.csv",),
    "valid": ("valid.csv",),
    "test": ("test.csv", "test_labels.csv", "groundtruth.csv", "test/test.csv", "test/groundtruth.csv"),
}


class CheXpert(LabelledFilms):
    """CheXpert (Irvin et al., AAAI 2019), version 1.0 or 1.0-small, read from the folder of the download.

    root: holds train.csv and valid.csv, or the folder CheXpert-v1.0... with them; images as train/patient00001/study1/
        view1_frontal.jpg, or, as 1.0 is downloaded in parts, in "CheXpert-v1.0 batch ..." beside the one with the
        tables. The test set's labels are test.csv, test_labels.csv or groundtruth.csv, a row per film
        ("Path") or per study ("Study", of which every film of its folder is taken).
    split: "train", "valid" or "test", or these with "chexpert-" before them, or a .txt file that lists films of train.
    uncertain: what -1 becomes. The default leaves such labels out (U-Ignore of the paper). blank: "zeros", the paper's
        reading of a finding that the report does not mention, or "ignore".
    The rest, items and attributes as axnet.data.labelled.LabelledFilms describes; ids are paths below the folder, and
    findings CHEXPERT_FINDINGS in canonical names ("Effusion" for Pleural Effusion).
    Raises FileNotFoundError for an absent folder, table or image, ValueError for content that contradicts itself.
    """

    def __init__(
        self,
        root: StrPath,
        split: str = "train",
        *,
        findings: Sequence[str] | None = None,
        allow_absent: bool = False,
        views: str | Sequence[str] = "frontal",
        uncertain: Policy = "ignore",
        blank: str = "zeros",
        size: int | None = None,
        masks: Callable[[str], npt.NDArray[Any]] | None = None,
        transform: Callable[[Item], Item] | None = None,
    ) -> None:
        """Read the table, and look for the images; the class describes the arguments."""
        own = split if listed(split) else None
        name = "train" if own else split.removeprefix("chexpert-")
        if name not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {tuple(SPLITS)}.")
        folder, path = _find(Path(root), name)
        table = read_table(path)
        columns = {canonical(column): column for column in table.columns}
        need_columns(table, ["Study" if "Study" in table.columns else "Path"], path)
        labels = [columns.get(finding, finding) for finding in CHEXPERT_FINDINGS]
        need_columns(table, labels, path)
        raw = raw_labels(table, labels, path)
        if "Path" not in table.columns:
            table, raw = _of_studies(table, raw, folder)
        rows = _rows(table, folder)
        _check_patients(folder, name, rows["patient"])
        super().__init__(
            Films(path, rows, raw, CHEXPERT_FINDINGS),
            root=folder,
            split=own or name,
            findings=findings,
            allow_absent=allow_absent,
            views=views,
            uncertain=uncertain,
            blank=blank,
            size=size,
            masks=masks,
            transform=transform,
            name_in_list=_below,  # as the column Path has them, too
        )
        self.split_name = f"chexpert-{Path(own).stem if own else name}"


def _find(root: Path, split: str) -> tuple[Path, Path]:
    """The folder with the images, and the table of a split."""
    for folder in (root, *sorted(root.glob("CheXpert-v1.0*"))):
        for name in SPLITS[split]:
            if (folder / name).is_file():
                return folder, folder / name
    raise absent(root, " or ".join(SPLITS[split]), "chexpert")


def _below(path: str) -> str:
    """A path of the table below the set's folder, whose name stands first in it."""
    first, _, rest = path.partition("/")
    return rest if first.startswith("CheXpert") else path


def _rows(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    names = [_below(path) for path in table["Path"]]
    views = ["lateral" if "lateral" in name.rsplit("/", 1)[-1] else "frontal" for name in names]
    if "Frontal/Lateral" in table.columns:
        views = [kind.strip().lower() or view for kind, view in zip(table["Frontal/Lateral"], views, strict=True)]
    if "AP/PA" in table.columns:
        views = [exact.strip() or view for exact, view in zip(table["AP/PA"], views, strict=True)]
    return pd.DataFrame(
        {
            "image": names,
            "path": _paths(folder, names),
            "patient": [_patient(name) for name in names],
            "view": views,
            **{name.lower(): table[name].tolist() for name in ("Sex", "Age") if name in table.columns},
        }
    )


def _paths(folder: Path, names: Sequence[str]) -> list[str]:
    """The file of each film; the training films of 1.0 may lie in several parts, by patient and without train/."""
    parts = {
        patient.name: patient.parent
        for part in folder.parent.glob("CheXpert-v1.0 batch*")
        for patient in part.iterdir()
        if patient.name.startswith("patient")
    }
    found = []
    for name in names:
        side, _, rest = name.partition("/")
        part = parts.get(rest.partition("/")[0]) if side == "train" else None
        found.append(str(folder / name if part is None else part / rest))
    return found


def _patient(name: str) -> str:
    found = re.search(r"patient\d+", name)
    if found is None:
        raise ValueError(f"table of CheXpert has the path '{name}', expected a folder patientN in it.")
    return found[0]


def _of_studies(
    table: pd.DataFrame, raw: npt.NDArray[np.float64], folder: Path
) -> tuple[pd.DataFrame, npt.NDArray[np.float64]]:
    """The films of each study, with its labels."""
    paths, rows = [], []
    for row, study in enumerate(table["Study"]):
        below = _below(study.strip().rstrip("/"))
        if not (folder / below).is_dir():
            raise FileNotFoundError(f"folder '{folder / below}' of study '{study}' does not exist.")
        films = [f"{below}/{file.id}" for file in find_images(folder / below)]
        paths += films
        rows += [row] * len(films)
    return pd.DataFrame({"Path": paths}), raw[rows]


def _check_patients(folder: Path, split: str, patients: pd.Series) -> None:
    other = {"train": "valid", "valid": "train"}.get(split)
    if other is None or not (folder / f"{other}.csv").is_file():
        return
    path = folder / f"{other}.csv"
    table = read_table(path)
    need_columns(table, ["Path"], path)
    found = table["Path"].str.extract(r"(patient\d+)", expand=False).dropna()
    check_disjoint({split: patients, other: found}, f"tables of '{folder}'")


def _open(request: Request) -> CheXpert:
    return CheXpert(request.root or "", request.split, findings=request.findings, **request.options)


DATASET = DataSet(
    title="CheXpert",
    root="the folder of the CheXpert download (train.csv, valid.csv, train/, valid/)",
    open=_open,
    splits={"train": "train", "test": "valid"},
    named={f"chexpert-{name}": {"train": "train", "test": name} for name in ("valid", "test")},
    options=("allow_absent", "views", "uncertain", "blank"),
    marks=("train.csv", "valid.csv"),
)
