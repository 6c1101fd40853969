"""The data sets that --data names: one module of this package each, with a DataSet named DATASET.

Listing the names imports none of them. A new data set is one new file here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axnet.paths import StrPath

DEFAULT = "phantom"
ORGANS_ONLY = ("wingspan",)
"""Sets without labels, for which no help text need import a module."""


@dataclass(frozen=True)
class Request:
    """What a run asks a data set for.

    split: one of the set's own. root: folder or table that the user named. findings: labels and their order, None for
    the set's own. seed, count, size, with_masks: for a set that is drawn: its random numbers, how many images, their
    side, and whether masks are wanted. options: what else the set's reader takes, by name.
    """

    split: str
    root: str | None = None
    findings: tuple[str, ...] | None = None
    seed: int = 0
    count: int = 0
    size: int = 128
    with_masks: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """One data set.

    title: in reports. root: what --root is to it, for help and errors; None where it needs none. splits: the parts of
    a run, "train" and "test", to its own splits. named: names of whole splits, such as "nih-official", each to what
    splits says of it. open: the films of a request with their labels, an
    axnet.data.XraySource; None where it has no labels. open_organs: the films of a request with organ masks (splits
    "train", "val", "test"); None where it has none. options: names that Request.options may have. marks: patterns of
    files that together tell a folder of this set.
    real: films of patients. masked: whether its films carry masks, and need no segmenter, as those that are drawn.
    """

    title: str
    root: str | None
    open: Callable[[Request], Any] | None = None
    open_organs: Callable[[Request], Any] | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    real: bool = True
    masked: bool = False

    def split(self, part: str, asked: str | None) -> str:
        """The set's own split for a part of a run, "train" or "test", of the split that a user names, if any.

        Raises ValueError where the user names none, and the set has none for the part: of packed films, some are a
        part alone.
        """
        if asked is None and part not in self.splits:
            what = "train on" if part == "train" else "be measured on"
            raise ValueError(f"split is missing: {self.root} has none to {what}, expected the name of one of its own.")
        if asked is None:
            return self.splits[part]
        return self.named.get(asked, {}).get(part, asked)


def names() -> tuple[str, ...]:
    """The names of all data sets."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def find(name: str, *, organs: bool = False, root: str | None = "") -> DataSet:
    """The data set of a name that has labels, or organ masks; root: what the user named, to be checked.

    Raises ValueError for another name, or where the set needs a root and that is None.
    """
    if name not in names() or _serves(name, organs) is None:
        accepted = [repr(other) for other in names() if _serves(other, organs)]
        raise ValueError(f"data is {name!r}, expected {', '.join(accepted[:-1])} or {accepted[-1]}.")
    found = load(name)
    if found.root is not None and root is None:
        raise ValueError(f"data '{name}' needs root, {found.root}: root is missing.")
    return found


def load(name: str) -> DataSet:
    """The entry of a name, without checks."""
    entry: DataSet = importlib.import_module(f"{__name__}.{name}").DATASET
    return entry


def absent(root: StrPath, what: str, name: str) -> FileNotFoundError:
    """The error for a folder that lacks a set's file; says which other set the folder looks like."""
    folder = Path(root)
    if not folder.exists():
        return FileNotFoundError(f"root '{folder}' does not exist.")
    like = looks_like(folder, name)
    hint = "" if like is None else f"; it looks like {load(like).title} (data '{like}')"
    if (folder / "manifest.json").is_file():
        hint = "; it looks like packed films (axnet.data.PackedFilms)"
    return FileNotFoundError(f"root '{folder}' holds no {what}, expected {load(name).root}{hint}.")


def looks_like(folder: Path, name: str) -> str | None:
    """Which other set's files a folder holds; None where it is no set's that is known."""
    return next((other for other in names() if other != name and _marked(folder, load(other).marks)), None)


def _marked(folder: Path, marks: tuple[str, ...]) -> bool:
    return bool(marks) and all(any(folder.glob(mark)) for mark in marks)


def _serves(name: str, organs: bool) -> Callable[[Request], Any] | None:
    return load(name).open_organs if organs else load(name).open
