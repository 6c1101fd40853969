"""NIH ChestX-ray14 as downloaded: table, official split lists, images, boxes."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.data import Dataset

from axnet.data.files import file_fingerprint
from axnet.data.findings import NIH_FINDINGS, NO_FINDING, Box
from axnet.data.image import read_image
from axnet.data.labelled import in_view, read_csv
from axnet.data.sets import absent
from axnet.data.splits import listed, split_hash
from axnet.data.uncertainty import Policy, resolved
from axnet.imaging import mask_values, resize
from axnet.paths import StrPath

SPLITS = ("train_val", "test", "all", "chexnet-train", "chexnet-val", "chexnet-test")
CHEXNET = "chexnet"
"""Folder below the set's for the lists of the random split that circulates with CheXNet's reproductions."""

BOX_FRAME = 1024
"""Side in pixels of the frame in which BBox_List_2017.csv counts, whatever the size of the stored images."""

BOXES = "BBox_List_2017.csv"
_COLUMNS = {
    "Image Index": "image",
    "Finding Labels": "labels",
    "Follow-up #": "follow_up",
    "Patient ID": "patient",
    "Patient Age": "age",
    "Patient Gender": "sex",
    "View Position": "view",
}
_BOX_FINDINGS = {"Infiltrate": "Infiltration"}
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

Item = dict[str, Any]


class NIHChestXray(Dataset[Item]):
    """The frontal X-rays of NIH ChestX-ray14 (Wang et al., CVPR 2017), read from the folder of the download.

    root: holds Data_Entry_2017*.csv (the v2020 table is preferred), images/ or images_001/images/ ...,
        train_val_list.txt and test_list.txt, and optionally BBox_List_2017.csv.
    split: "train_val" or "test", the official lists, "all", every row of the table, "chexnet-train", "chexnet-val" or
        "chexnet-test", the random split of CheXNet's reproductions, whose lists train_list.txt, val_list.txt and
        test_list.txt lie in root/chexnet; all of these also with "nih-" before them; or a .txt file of image names.
    size: side in pixels to which images (and masks) are resized, None for the stored size.
    findings: the labels to return and their order; with allow_absent, those that are not NIH's are NaN instead of an
        error.
    views: "PA", "AP", both, or "all", which is the same. uncertain: as for the other readers; no label of NIH's is
        uncertain, so it is checked and changes nothing.
    masks: called with an image id, returns its mask [A,H,W] of any size, bool, 0/1 or 0 to 255; it is resized to the
        image.
    transform: called with the item, returns the item to use.

    Items: image float32 [1,H,W] in [0,1], label float32 [K], id, patient, view ("PA" or "AP"), and with masks also
    mask float32 [A,H,W]. Attributes, all in the order of the table: table (image, patient, view, age in years, sex,
    follow_up and one column per finding), labels float32 [N,K], ids, patients (one per image), and split_hash, the
    SHA-256 of the sorted image list, which names the split in reports.
    Raises FileNotFoundError for an absent folder, table, list or image, ValueError for content that contradicts itself.
    """

    def __init__(
        self,
        root: StrPath,
        split: str = "train_val",
        *,
        size: int | None = None,
        findings: Sequence[str] = NIH_FINDINGS,
        allow_absent: bool = False,
        views: str | Sequence[str] = "all",
        uncertain: Policy = "ignore",
        masks: Callable[[str], npt.NDArray[Any]] | None = None,
        transform: Callable[[Item], Item] | None = None,
    ) -> None:
        """Read table and lists, and look for the images; the class describes the arguments."""
        own = listed(split)
        name = split if own else split.removeprefix("nih-").removeprefix("official-")
        if name not in SPLITS and own is None:
            raise ValueError(f"split is {split!r}, expected one of {SPLITS}.")
        split = name
        unknown = [finding for finding in findings if finding not in NIH_FINDINGS]
        if unknown and not (allow_absent and len(unknown) < len(findings)):
            raise ValueError(f"findings has {unknown[0]!r}, expected labels out of {NIH_FINDINGS}.")
        self.root = Path(root)
        self.split = split
        self.size = size
        self.findings: tuple[str, ...] = tuple(findings)
        resolved(uncertain, self.findings, NIH_FINDINGS)
        self.masks = masks
        self.transform = transform

        table = _read_table(self.root)
        if own is not None:
            lists = {split: own}
        else:
            lists = _chexnet_lists(self.root, split) if split.startswith(CHEXNET) else _read_lists(self.root, split)
        _check_lists(table, lists)
        if split != "all":
            table = table[table["image"].isin(lists[split])]
        shown = in_view(table["view"], views)
        if len(table) and not shown.any():
            raise ValueError(
                f"views {views!r} leaves none of the {len(table)} films of split '{split}', whose views are: "
                f"{', '.join(sorted(set(table['view'])))}."
            )
        table = table[shown]
        known = [finding for finding in self.findings if finding in NIH_FINDINGS]
        self.table: pd.DataFrame = table[[*_HEAD, *known]].reset_index(drop=True)
        self.ids: list[str] = self.table["image"].tolist()
        self.patients: list[str] = self.table["patient"].tolist()
        self.labels: npt.NDArray[np.float32] = self.table.reindex(columns=list(self.findings)).to_numpy(
            dtype=np.float32
        )
        self.split_hash: str = split_hash(self.ids)
        self.split_name = f"nih-{split if own is None else Path(split).stem}"
        self._views: list[str] = self.table["view"].tolist()
        self._paths = _find_images(self.root, self.ids)
        self._boxes: dict[str, list[Box]] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        """One image with its labels."""
        name = self.ids[index]
        image = read_image(self._paths[name])
        if self.size is not None:
            image = resize(image, self.size)
        item: Item = {
            "image": torch.from_numpy(image)[None],
            "label": torch.from_numpy(self.labels[index].copy()),
            "id": name,
            "patient": self.patients[index],
            "view": self._views[index],
        }
        if self.masks is not None:
            mask = self.masks(name)
            if mask.ndim != 3:
                raise ValueError(f"masks returned shape {mask.shape} for '{name}', expected [A,H,W].")
            values = mask_values(mask, f"masks for '{name}'")
            item["mask"] = torch.from_numpy(resize(values, (image.shape[0], image.shape[1])))
        return item if self.transform is None else self.transform(item)

    def fingerprint(self) -> str | None:
        """Names the images and masks of the items; None where a transform or masks of unknown origin make them."""
        masks = None if self.masks is None else getattr(self.masks, "fingerprint", lambda: "")()
        if self.transform is not None or masks == "":
            return None
        return f"{file_fingerprint(self._paths[name] for name in self.ids)}-{self.size}-{masks}"

    def path(self, image_id: str) -> Path:
        """The file of an image of this split; raises ValueError for an unknown id."""
        if image_id not in self._paths:
            raise ValueError(f"image_id is '{image_id}', expected an image of split '{self.split}'.")
        return Path(self._paths[image_id])

    @property
    def has_boxes(self) -> bool:
        """Whether the download has BBox_List_2017.csv."""
        return (self.root / BOXES).is_file()

    def boxes(self, image_id: str) -> list[Box]:
        """Boxes that radiologists drew on an image, in pixels of the stored image; empty where there are none.

        Raises FileNotFoundError when the download lacks BBox_List_2017.csv, ValueError for an unknown id.
        """
        found = self.framed_boxes(image_id)
        if not found:
            return []
        height, width = read_image(self.path(image_id)).shape
        sx, sy = width / BOX_FRAME, height / BOX_FRAME
        return [Box(box.finding, box.x * sx, box.y * sy, box.w * sx, box.h * sy) for box in found]

    def framed_boxes(self, image_id: str) -> list[Box]:
        """The same in the frame of BOX_FRAME x BOX_FRAME pixels, as the download has them; no image is read."""
        self.path(image_id)  # of this split, or an error
        if self._boxes is None:
            self._boxes = _read_boxes(self.root / BOXES)
        return self._boxes.get(image_id, [])


_HEAD = ("image", "patient", "view", "age", "sex", "follow_up")


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _read_table(root: Path) -> pd.DataFrame:
    candidates = sorted(root.glob("Data_Entry_2017*.csv"))
    if not candidates:
        raise absent(root, "Data_Entry_2017*.csv", "nih")
    path = candidates[-1]  # "..._v2020.csv" sorts after the older "....csv"
    text = dict.fromkeys(("Image Index", "Finding Labels", "Patient ID", "Patient Age"), str)
    raw = read_csv(path, dtype=text, index_col=False)
    raw = raw.rename(columns={"Patient Sex": "Patient Gender"})
    missing = [column for column in _COLUMNS if column not in raw.columns]
    if missing:
        raise ValueError(
            f"table '{path}' lacks column '{missing[0]}', expected {list(_COLUMNS)}; it has {list(raw.columns)}."
        )
    table = raw[list(_COLUMNS)].rename(columns=_COLUMNS)
    incomplete = table.index[table.isna().any(axis=1)]
    if len(incomplete):
        raise ValueError(f"table '{path}' has {len(incomplete)} incomplete rows, the first is row {incomplete[0] + 1}.")
    repeated = table["image"][table["image"].duplicated()].tolist()
    if repeated:
        raise ValueError(f"table '{path}' lists {len(repeated)} images more than once: {_some(repeated)}.")
    codes, numbers = pd.factorize(table["patient"])
    table["patient"] = np.array([number.zfill(8) for number in numbers], dtype=object)[codes]
    table["age"] = _years(table["age"], path)
    labels = pd.DataFrame(_binary_labels(table.pop("labels"), path), columns=list(NIH_FINDINGS), index=table.index)
    return pd.concat([table, labels], axis=1)


def _years(ages: pd.Series, path: Path) -> npt.NDArray[np.float32]:
    codes, texts = pd.factorize(ages)
    years = []
    for text in texts:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)([YMWD]?)\s*", text)  # the first release wrote "058Y", "013M"
        if match is None:
            raise ValueError(f"table '{path}' has Patient Age {text!r}, expected years such as 58 or 058Y.")
        years.append(float(match[1]) * _YEARS[match[2] or "Y"])
    return np.asarray(np.array(years)[codes], dtype=np.float32)


def _binary_labels(labels: pd.Series, path: Path) -> npt.NDArray[np.float32]:
    codes, texts = pd.factorize(labels)  # under a thousand combinations among 112,120 rows
    column = {finding: k for k, finding in enumerate(NIH_FINDINGS)}
    rows = np.zeros((len(texts), len(NIH_FINDINGS)))
    for row, text in zip(rows, texts, strict=True):
        for finding in text.split("|"):
            if finding in column:
                row[column[finding]] = 1
            elif finding != NO_FINDING:
                raise ValueError(f"table '{path}' has the unknown finding {finding!r}, expected one of {NIH_FINDINGS}.")
    return np.asarray(rows[codes], dtype=np.float32)


def _read_lists(root: Path, split: str) -> dict[str, list[str]]:
    lists = {}
    for name in ("train_val", "test"):
        path = root / f"{name}_list.txt"
        if path.is_file():
            lists[name] = path.read_text(encoding="utf-8-sig").split()
        elif name == split:
            raise FileNotFoundError(f"split '{split}' needs '{path}', which does not exist.")
    return lists


def _chexnet_lists(root: Path, split: str) -> dict[str, list[str]]:
    folder, lists = root / CHEXNET, {}
    for name in ("train", "val", "test"):
        path = folder / f"{name}_list.txt"
        if path.is_file():
            lists[f"{CHEXNET}-{name}"] = listed(str(path)) or []
    if split not in lists:
        raise FileNotFoundError(
            f"split 'nih-{split}' needs '{folder / (split.rpartition('-')[2] + '_list.txt')}', which does not exist: "
            "the random lists of CheXNet's reproductions (train_list.txt, val_list.txt, test_list.txt) do not come "
            f"with axnet nor with the download; put them into '{folder}'."
        )
    return lists


def _check_lists(table: pd.DataFrame, lists: dict[str, list[str]]) -> None:
    patient_of = pd.Series(table["patient"].to_numpy(), index=table["image"])
    patients = {}
    for name, images in lists.items():
        listed = pd.Index(images)
        absent = listed[~listed.isin(patient_of.index)].tolist()
        if absent:
            file = name if name.endswith(".txt") else f"{name.replace('-', '/')}_list.txt"
            raise ValueError(f"{file} names {len(absent)} images that the table lacks: {_some(absent)}.")
        patients[name] = set(patient_of.loc[listed])
    for one, other in itertools.combinations(patients, 2):
        shared = sorted(patients[one] & patients[other])
        if shared:
            files = [f"{name.replace('-', '/')}_list.txt" for name in (one, other)]
            raise ValueError(f"{len(shared)} patients are in both {files[0]} and {files[1]}: {_some(shared)}.")


def _find_images(root: Path, ids: Sequence[str]) -> dict[str, str]:
    present: dict[str, str] = {}
    folders = sorted(path for path in root.iterdir() if re.fullmatch(r"images(_\d+)?", path.name) and path.is_dir())
    for folder in folders:
        for parent, _, names in os.walk(folder):
            present.update((name, os.path.join(parent, name)) for name in names)
    missing = [name for name in ids if name not in present]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(ids)} images are missing under '{root}' (images/ or images_001/images/ ...): "
            f"{_some(missing)}."
        )
    return {name: present[name] for name in ids}


def _read_boxes(path: Path) -> dict[str, list[Box]]:
    if not path.is_file():
        raise FileNotFoundError(f"boxes need '{path}', which does not exist.")
    # The header "Bbox [x,y,w,h],,," spells more columns than rows have: take the first six by position.
    raw = read_csv(path, header=None, skiprows=1, usecols=range(6), names=["image", "finding", "x", "y", "w", "h"])
    boxes: dict[str, list[Box]] = {}
    for row in raw.itertuples(index=False):
        finding = _BOX_FINDINGS.get(row.finding, row.finding)
        if finding not in NIH_FINDINGS:
            raise ValueError(f"'{path}' has the unknown finding {row.finding!r}, expected one of {NIH_FINDINGS}.")
        boxes.setdefault(row.image, []).append(Box(finding, float(row.x), float(row.y), float(row.w), float(row.h)))
    return boxes
