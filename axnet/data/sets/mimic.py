"""MIMIC-CXR-JPG 2.x as downloaded: four tables, the official split, two labellers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from axnet.data.findings import CHEXPERT_FINDINGS, canonical
from axnet.data.labelled import Films, Item, LabelledFilms, need_columns, raw_labels, read_table
from axnet.data.sets import DataSet, Request, absent
from axnet.data.splits import check_disjoint, listed
from axnet.data.uncertainty import Policy
from axnet.paths import StrPath

SPLITS = ("train", "validate", "test", "all")
LABELLERS = ("chexpert", "negbio")


class MIMICCXR(LabelledFilms):
    """MIMIC-CXR-JPG 2.x (Johnson et al., Scientific Data 2019), read from the folder of the download.

    root: holds mimic-cxr-2.*-metadata.csv, -split.csv and -chexpert.csv or -negbio.csv (also .csv.gz), and
        files/p10/p10000032/s50414267/DICOM_ID.jpg (or .dcm, .png).
    split: "train", "validate" or "test", the official one, or these with "mimic-" before them, "all",
        or a .txt file that lists DICOM ids.
    labeller: "chexpert" or "negbio", whose labels are read. Films of studies that it did not label are left out.
    uncertain, blank: as for CheXpert. The rest, items and attributes as axnet.data.labelled.LabelledFilms describes;
    ids are DICOM ids, patients subject ids, and findings CHEXPERT_FINDINGS in canonical names.
    Raises FileNotFoundError for an absent folder, table or image, ValueError for content that contradicts itself.
    """

    def __init__(
        self,
        root: StrPath,
        split: str = "train",
        *,
        labeller: str = "chexpert",
        findings: Sequence[str] | None = None,
        allow_absent: bool = False,
        views: str | Sequence[str] = "frontal",
        uncertain: Policy = "ignore",
        blank: str = "zeros",
        size: int | None = None,
        masks: Callable[[str], npt.NDArray[Any]] | None = None,
        transform: Callable[[Item], Item] | None = None,
    ) -> None:
        """Read the tables, and look for the images; the class describes the arguments."""
        own = split if listed(split) else None
        name = "all" if own else split.removeprefix("mimic-").replace("official-", "")
        if name not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {SPLITS}.")
        if labeller not in LABELLERS:
            raise ValueError(f"labeller is {labeller!r}, expected one of {LABELLERS}.")
        folder = Path(root)
        films = _table(folder, "metadata", ("dicom_id", "subject_id", "study_id", "ViewPosition"))[1]
        _, sides = _table(folder, "split", ("dicom_id", "split"))
        path, labels = _table(folder, labeller, ("subject_id", "study_id"))
        films = films.merge(sides[["dicom_id", "split"]], on="dicom_id", how="inner", validate="one_to_one")
        check_disjoint({side: group["subject_id"] for side, group in films.groupby("split")}, f"split of '{folder}'")
        if name != "all":
            films = films[films["split"] == name]
        columns = {canonical(column): column for column in labels.columns}
        wanted = [columns.get(finding, finding) for finding in CHEXPERT_FINDINGS]
        need_columns(labels, wanted, path)
        place = pd.Series(np.arange(len(labels)), index=labels["study_id"])
        if place.index.has_duplicates:
            study = place.index[place.index.duplicated()][0]
            raise ValueError(f"table '{path}' lists study {study} more than once.")
        films = films[films["study_id"].isin(place.index)].reset_index(drop=True)
        raw = raw_labels(labels, wanted, path)[place.loc[films["study_id"]].to_numpy()]
        super().__init__(
            Films(path, _rows(films, folder), raw, CHEXPERT_FINDINGS),
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
        )
        self.split_name = f"mimic-{Path(own).stem}" if own else f"mimic-official-{name}"


def _table(root: Path, kind: str, columns: Sequence[str]) -> tuple[Path, pd.DataFrame]:
    found = sorted(path for path in root.glob(f"mimic-cxr-2.*-{kind}.csv*") if path.suffix in (".csv", ".gz"))
    if not found:
        raise absent(root, f"mimic-cxr-2.*-{kind}.csv", "mimic")
    table = read_table(found[-1])
    need_columns(table, columns, found[-1])
    return found[-1], table


def _rows(films: pd.DataFrame, folder: Path) -> pd.DataFrame:
    stems = [
        os.path.join(folder, "files", f"p{subject[:2]}", f"p{subject}", f"s{study}", name)
        for subject, study, name in zip(films["subject_id"], films["study_id"], films["dicom_id"], strict=True)
    ]
    suffix = next((end for end in (".jpg", ".dcm", ".png") if stems and os.path.isfile(stems[0] + end)), ".jpg")
    return pd.DataFrame(
        {
            "image": films["dicom_id"],
            "path": [stem + suffix for stem in stems],
            "patient": films["subject_id"],
            "view": films["ViewPosition"].str.strip(),
        }
    )


def _open(request: Request) -> MIMICCXR:
    """By CheXpert's labeller, or by NegBio where the folder has its table alone."""
    root = Path(request.root or "")
    there = [name for name in LABELLERS if any(root.glob(f"mimic-cxr-2.*-{name}.csv*"))]
    options = {"labeller": there[0] if there else LABELLERS[0], **request.options}
    return MIMICCXR(root, request.split, findings=request.findings, **options)


DATASET = DataSet(
    title="MIMIC-CXR-JPG",
    root="the folder of the MIMIC-CXR-JPG download (mimic-cxr-2.*-metadata.csv, -split.csv, -chexpert.csv, files/)",
    open=_open,
    splits={"train": "train", "test": "test"},
    named={"mimic-official": {"train": "train", "test": "test"}},
    options=("allow_absent", "views", "uncertain", "blank", "labeller"),
    marks=("mimic-cxr-2.*-metadata.csv*",),
)
