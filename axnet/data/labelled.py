"""Films with labels out of a table: what the readers of CheXpert, MIMIC-CXR and CSV tables share."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.data import Dataset

from axnet.data.files import file_fingerprint
from axnet.data.findings import canonical
from axnet.data.image import read_image
from axnet.data.splits import listed, split_hash
from axnet.data.uncertainty import UNCERTAIN, Policy, settled
from axnet.imaging import mask_values, resize
from axnet.paths import StrPath

VIEWS = ("frontal", "lateral", "PA", "AP", "all")
Item = dict[str, Any]


@dataclass(frozen=True)
class Films:
    """Films of a table before anything is chosen.

    table: its file, for errors. rows: columns image (a name), path, patient, view ("PA", "AP", "frontal", "lateral" or
    another), one row per film. raw: float64 [N,K], 0, 1, -1 for uncertain, NaN for blank. findings: K canonical names.
    """

    table: Path
    rows: pd.DataFrame
    raw: npt.NDArray[np.float64]
    findings: tuple[str, ...]


class LabelledFilms(Dataset[Item]):
    """Films with labels of one split, which may be the path of a .txt file with the films' ids, one per line.

    findings: labels to return and their order, in canonical names (axnet.data.canonical) or the set's own; None for
    all; with allow_absent, those that the set does not label are NaN instead of an error. views: "frontal" (PA, AP),
    "lateral", "PA", "AP", several of these, or "all". uncertain, blank: what labels that the reports leave open become
    (axnet.data.uncertainty). size: side in pixels to which images (and masks) are resized, None for the stored size.
    masks: called with an image id, returns its mask [A,H,W], as MaskTable does. transform: called with the item,
    returns the item to use. name_in_list: the id of a film, of its name in a list.

    Items: image float32 [1,H,W] in [0,1], label float32 [K] (NaN: left out), id, patient, view, and with masks also
    mask float32 [A,H,W]. Attributes: root, split, findings, table (image, path, patient, view), raw float64 [N,K],
    blank and labels float32 [N,K], ids, patients, and split_hash, the SHA-256 of the sorted image list.
    Raises FileNotFoundError for missing images, ValueError for an unknown finding or view, labels other than 0, 1, -1
    and blank, a name that comes twice, or when nothing is left.
    """

    def __init__(
        self,
        films: Films,
        *,
        root: Path,
        split: str,
        findings: Sequence[str] | None = None,
        allow_absent: bool = False,
        views: str | Sequence[str] = "frontal",
        uncertain: Policy = "ignore",
        blank: str = "zeros",
        size: int | None = None,
        masks: Callable[[str], npt.NDArray[Any]] | None = None,
        transform: Callable[[Item], Item] | None = None,
        name_in_list: Callable[[str], str] = str,
    ) -> None:
        """Choose and check; the class describes the arguments."""
        wanted = films.findings if findings is None else tuple(canonical(finding) for finding in findings)
        unknown = [finding for finding in wanted if finding not in films.findings]
        if unknown and not (allow_absent and len(unknown) < len(wanted)):
            raise ValueError(f"findings has {unknown[0]!r}, expected labels out of {films.findings}.")
        only = listed(split)
        if only is not None:
            films = _of_list(films, [name_in_list(name) for name in only], split)
        if not len(films.rows):
            raise ValueError(f"split '{split}' of table '{films.table}' holds no film.")
        shown = in_view(films.rows["view"], views)
        if not shown.any():
            there = ", ".join(sorted({str(view) or "(blank)" for view in films.rows["view"]})[:8])
            raise ValueError(
                f"views {views!r} leaves none of the {len(shown)} films of split '{split}', whose views are: {there}."
            )
        self.root, self.split, self.findings = root, split, wanted
        self.size, self.masks, self.transform = size, masks, transform
        self.table: pd.DataFrame = films.rows[shown].reset_index(drop=True)
        self.ids: list[str] = self.table["image"].tolist()
        self.patients: list[str] = self.table["patient"].tolist()
        twice = self.table["image"][self.table["image"].duplicated()].tolist()
        if twice:
            raise ValueError(f"table '{films.table}' lists {len(twice)} films more than once: {some(twice)}.")
        present = [finding in films.findings for finding in wanted]
        columns = [films.findings.index(finding) for finding in wanted if finding in films.findings]
        self.raw = np.full((len(self.ids), len(wanted)), np.nan)
        self.raw[:, present] = films.raw[shown][:, columns]
        self.blank = blank
        self.labels = settled(self.raw, self.ids, wanted, uncertain, blank, films.findings)
        self.labels[:, np.logical_not(present)] = np.nan
        self.split_hash = split_hash(self.ids)
        self._paths: list[str] = self.table["path"].tolist()
        self._views: list[str] = self.table["view"].tolist()
        self._places = {name: place for place, name in enumerate(self.ids)}
        self._check_files()

    def _check_files(self) -> None:
        missing = [path for path in self._paths if not os.path.isfile(path)]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self._paths)} images of split '{self.split}' are missing: {some(missing)}."
            )

    def _read(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        return read_image(self._paths[index]), self._mask(index)

    def _mask(self, index: int) -> npt.NDArray[np.float32] | None:
        if self.masks is None:
            return None
        return mask_values(self.masks(self.ids[index]), f"masks for '{self.ids[index]}'")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        """One image with its labels."""
        name = self.ids[index]
        image, mask = self._read(index)
        if self.size is not None:
            image = resize(image, self.size)
        item: Item = {
            "image": torch.from_numpy(image)[None],
            "label": torch.from_numpy(self.labels[index].copy()),
            "id": name,
            "patient": self.patients[index],
            "view": self._views[index],
        }
        if mask is not None:
            item["mask"] = torch.from_numpy(resize(mask, (image.shape[0], image.shape[1])))
        return item if self.transform is None else self.transform(item)

    def path(self, image_id: str) -> Path:
        """The file of an image of this split; raises ValueError for an unknown id."""
        if image_id not in self._places:
            raise ValueError(f"image_id is '{image_id}', expected an image of split '{self.split}'.")
        return Path(self._paths[self._places[image_id]])

    def counts(self) -> pd.DataFrame:
        """What the policies make: per finding the films that count as positive and negative, and those left out.

        Columns positive, negative, left_out, uncertain and blank; smoothed labels count as positive.
        """
        return pd.DataFrame(
            {
                "positive": (self.labels > 0).sum(0),
                "negative": (self.labels == 0).sum(0),
                "left_out": np.isnan(self.labels).sum(0),
                "uncertain": (self.raw == UNCERTAIN).sum(0),
                "blank": np.isnan(self.raw).sum(0),
            },
            index=list(self.findings),
        )

    def fingerprint(self) -> str | None:
        """Names the images and masks of the items; None where a transform or masks of unknown origin make them."""
        masks = None if self.masks is None else getattr(self.masks, "fingerprint", lambda: "")()
        if self.transform is not None or masks == "":
            return None
        return f"{file_fingerprint(self._paths)}-{self.size}-{masks}"


def _of_list(films: Films, only: Sequence[str], split: str) -> Films:
    absent = sorted(set(only) - set(films.rows["image"]))
    if absent:
        raise ValueError(f"split list '{split}' names {len(absent)} films that '{films.table}' lacks: {some(absent)}.")
    chosen = films.rows["image"].isin(only).to_numpy()
    return Films(films.table, films.rows[chosen].reset_index(drop=True), films.raw[chosen], films.findings)


def read_table(path: StrPath) -> pd.DataFrame:
    """A CSV file, also compressed, as text; header lines that come again, as in files put together, are left out.

    Fields are divided by commas, or by semicolons or tabs where the header has no comma, as spreadsheets write them.
    Raises ValueError as read_csv does, for a row with more fields than the header, and for two columns of one name.
    """
    text = {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "skipinitialspace": True}
    head = read_csv(path, nrows=1, **text)
    divided = str(head.iat[0, 0]) if head.shape == (1, 1) else ""
    table = read_csv(path, sep=next((mark for mark in ";\t" if mark in divided), ","), **text)
    names = [str(name).strip() for name in table.iloc[0]]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"table '{path}' has the column '{twice[0]}' more than once, expected different names.")
    table.columns = [name or f"Unnamed: {place}" for place, name in enumerate(names)]
    first = next((name for name in names if name), table.columns[0])
    return table[table[first].str.strip() != first].reset_index(drop=True)


def read_csv(path: StrPath, **options: Any) -> pd.DataFrame:
    """pandas.read_csv, whose complaints name no file. Raises ValueError for a file that is no table, or damaged."""
    try:
        return pd.read_csv(path, **options)
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"table '{path}' cannot be read as CSV ({' '.join(str(error).split())}).") from error


def raw_labels(table: pd.DataFrame, columns: Sequence[str], path: Path) -> npt.NDArray[np.float64]:
    """Labels [N,K] of text columns: 0, 1 (also False, True), -1, NaN for blank.

    Raises ValueError that names file, row and column.
    """
    raw = np.empty((len(table), len(columns)))
    for place, column in enumerate(columns):
        codes, texts = pd.factorize(table[column].str.strip())
        values = np.array([_label(text) for text in texts], dtype=np.float64)
        wrong = np.flatnonzero(np.isinf(values))
        if len(wrong):
            row = int(np.flatnonzero(codes == wrong[0])[0])
            raise ValueError(
                f"table '{path}' has {column} {texts[wrong[0]]!r} in row {row + 1}, expected 0, 1, -1 or blank."
            )
        raw[:, place] = values[codes] if len(values) else np.nan
    return raw


def need_columns(table: pd.DataFrame, columns: Sequence[str], path: Path) -> None:
    """Check that a table has its columns; raises ValueError that says what it has."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(
            f"table '{path}' lacks column '{missing[0]}', expected {list(columns)}; it has {list(table.columns)}."
        )


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _label(text: str) -> float:
    """A label's number; infinity for what is none."""
    word = text.lower()
    if word in ("", "nan", "na", "none"):
        return float("nan")
    if word in ("true", "false"):  # as pandas writes truth values
        return float(word == "true")
    try:
        value = float(text)
    except ValueError:
        return float("inf")
    return value if value in (0, 1, -1) else float("inf")


def in_view(views: pd.Series, wanted: str | Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which films have a view that is wanted; raises ValueError for one that there is not."""
    asked = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    unknown = [view for view in asked if view not in VIEWS]
    if unknown or not asked:
        raise ValueError(f"views is {wanted!r}, expected one or several of {VIEWS}.")
    if "all" in asked:
        return np.ones(len(views), dtype=bool)
    taken = {"frontal": ("FRONTAL", "PA", "AP"), "lateral": ("LATERAL", "LL", "RL", "L", "XTABLE LATERAL")}
    accepted = {name for view in asked for name in taken.get(view, (view,))}
    return np.asarray(views.astype(str).str.upper().isin(accepted), dtype=np.bool_)  # some tables write "pa"
