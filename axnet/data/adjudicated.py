"""Labels that radiologists agreed on, for films whose labels were mined from reports."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd

from axnet.data.findings import CHEXPERT_FINDINGS, NIH_FINDINGS, canonical
from axnet.data.labelled import read_table
from axnet.paths import StrPath

GOOGLE2019 = "google2019"
MADE_OF: dict[str, tuple[str, ...]] = {
    "Nodule or mass": ("Nodule", "Mass"),
    "Airspace opacity": ("Infiltration", "Pneumonia", "Consolidation", "Atelectasis", "Edema"),
}
"""Google's broader labels, and the findings of NIH's that are taken for one of them."""

_TABLE = "data/google2019_nih-chest-xray-labels.csv.gz"
_VALUES = {"YES": 1.0, "NO": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0, "TRUE": 1.0, "FALSE": 0.0}
_KEYS = ("Image Index", "image", "path")


def read_adjudicated(file: StrPath) -> pd.DataFrame:
    """A table of radiologists' labels: indexed by the film's name, a column per finding with 1, 0 or NaN.

    file: a CSV file (may be compressed) with a column "Image Index", "image" or "path" and, per finding, YES or NO, 1
    or 0, or nothing; other columns are left out. Or "google2019": 4,376 films of NIH ChestX-ray14 (Majkowska et al.,
    Radiology 2020), as the package torchxrayvision carries them; it is not imported, so it needs no torchvision.
    Raises FileNotFoundError where there is none, ValueError for a file that is no table, or a table without such
    columns or with a film twice.
    """
    path = _google2019() if str(file) == GOOGLE2019 else Path(file)
    if not path.is_file():
        raise FileNotFoundError(
            f"adjudicated is '{file}', which does not exist, expected a CSV file or '{GOOGLE2019}'."
        )
    table = read_table(path)
    key = next((name for name in _KEYS if name in table.columns), None)
    if key is None:
        raise ValueError(f"adjudicated '{path}' has the columns {list(table.columns)}, expected one of {_KEYS}.")
    index = [PurePosixPath(name).name for name in table[key]]
    twice = sorted(name for name, count in pd.Series(index).value_counts().items() if count > 1)
    if twice:
        raise ValueError(f"adjudicated '{path}' names '{twice[0]}' more than once, expected a row per film.")
    columns = {}
    for name in table.columns:
        text = table[name].str.strip().str.upper()
        strange = text[~text.isin([*_VALUES, ""])]
        if len(strange) and canonical(name) in (*NIH_FINDINGS, *CHEXPERT_FINDINGS):
            raise ValueError(
                f"adjudicated '{path}' has {name} {table[name][strange.index[0]]!r} in row {strange.index[0] + 1}, "
                "expected YES, NO, 1, 0 or nothing."
            )
        if name != key and not len(strange) and (text != "").any():
            columns[name if name in MADE_OF else canonical(name)] = text.map(_VALUES).to_numpy(dtype=np.float64)
    if not columns:
        raise ValueError(f"adjudicated '{path}' has no column of YES and NO or 1 and 0, expected one per finding.")
    return pd.DataFrame(columns, index=index)


def aligned(table: pd.DataFrame, ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Labels [N, columns of the table] of films by their ids, NaN for those that it lacks.

    Raises ValueError where it has none of them, or a name that several of them have.
    """
    names = pd.Index([PurePosixPath(name).name for name in ids])
    alike = names[names.duplicated() & names.isin(table.index)]
    if len(alike):
        raise ValueError(f"adjudicated has '{alike[0]}', as several films of this split are named, expected one film.")
    if not table.index.isin(names).any():
        raise ValueError(f"adjudicated has {len(table)} films, none of which is among the {len(names)} of this split.")
    return np.asarray(table.reindex(names).to_numpy(dtype=np.float64))


def _google2019() -> Path:
    found = find_spec("torchxrayvision")
    if found is None or found.origin is None:
        raise FileNotFoundError(
            f"adjudicated is '{GOOGLE2019}', whose table comes with torchxrayvision: pip install --no-deps "
            "torchxrayvision, or give the table as a file."
        )
    return Path(found.origin).parent / _TABLE
