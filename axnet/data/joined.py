"""Several data sets as one, each with the labels that it has."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from axnet.data.sets import names
from axnet.data.splits import split_hash

Item = dict[str, Any]


class Labelled(Protocol):
    """A set of films with labels, as the readers of axnet.data are."""

    findings: tuple[str, ...]

    @property
    def ids(self) -> list[str]: ...  # noqa: D102
    @property
    def patients(self) -> list[str]: ...  # noqa: D102
    @property
    def labels(self) -> npt.NDArray[np.float32]: ...  # noqa: D102
    def __len__(self) -> int: ...  # noqa: D105
    def __getitem__(self, index: int) -> Item: ...  # noqa: D105


class Joined(Dataset[Item]):
    """Films of several sets, one set after the other.

    sets: by name, which goes before ids and patients, as in "nih/00000001_000.png": patients of different sets are
    different patients. findings: labels and their order, None for all that any set has; a set that does not label one
    has NaN there, which loss and metrics leave out.

    Items: those of the sets, with label [K], id and patient of this one.
    Attributes: findings, labels float32 [N,K], ids, patients, split_hash, split_name.
    Raises ValueError without sets, or for a finding that none of them labels.
    """

    def __init__(self, sets: Mapping[str, Labelled], findings: tuple[str, ...] | None = None) -> None:
        """Put the labels together; no image is read."""
        if not sets:
            raise ValueError("sets is empty, expected one data set or more.")
        self.sets = dict(sets)
        known = tuple(dict.fromkeys(finding for one in sets.values() for finding in one.findings))
        self.findings = known if findings is None else tuple(findings)
        unknown = [finding for finding in self.findings if finding not in known]
        if unknown:
            raise ValueError(f"findings has {unknown[0]!r}, expected labels that one of the sets has: {known}.")
        self.ids = [f"{name}/{film}" for name, one in sets.items() for film in one.ids]
        self.patients = [f"{name}/{patient}" for name, one in sets.items() for patient in one.patients]
        self.labels: npt.NDArray[np.float32] = np.concatenate([self._labels(one) for one in sets.values()])
        self.split_hash = split_hash(self.ids)
        self.split_name = "+".join(getattr(one, "split_name", name) for name, one in sets.items())
        self._ends = np.cumsum([len(one) for one in sets.values()])

    def _labels(self, one: Labelled) -> npt.NDArray[np.float32]:
        labels = np.full((len(one), len(self.findings)), np.nan, dtype=np.float32)
        for column, finding in enumerate(self.findings):
            if finding in one.findings:
                labels[:, column] = one.labels[:, one.findings.index(finding)]
        return labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        """One image with the labels that its set has."""
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, expected one of {len(self)} images.")
        which = int(np.searchsorted(self._ends, index, side="right"))
        begin = int(self._ends[which - 1]) if which else 0
        item = list(self.sets.values())[which][index - begin]
        return {
            **item,
            "label": torch.from_numpy(self.labels[index].copy()),
            "id": self.ids[index],
            "patient": self.patients[index],
        }

    def overlap(self) -> dict[tuple[str, str], list[str]]:
        """Films that two of the sets have both, as far as their names tell, by the names of the sets.

        in_common says how they are told.
        """
        pairs = itertools.combinations(self.sets, 2)
        found = {(one, other): in_common(self.sets[one].ids, self.sets[other].ids) for one, other in pairs}
        return {pair: films for pair, films in found.items() if films}

    def fingerprint(self) -> str | None:
        """Names the images and masks of the items; None where that of a set is not known."""
        unknown: Callable[[], None] = lambda: None  # noqa: E731
        found = [getattr(one, "fingerprint", unknown)() for one in self.sets.values()]
        return None if None in found else hashlib.sha256("|".join(map(str, found)).encode()).hexdigest()[:24]


def among(ids: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of ids whose films are among the others, as far as their names tell; either may be of sets that are joined.

    Of each set by itself, as in_common, or by the same id.
    """
    found: set[str] = set()
    for before, films in _by_set(ids).items():
        for shown in _by_set(others).values():
            shared = {*in_common(films, shown), *(set(films) & set(shown))}
            found.update(before + film for film in films if film in shared or PurePosixPath(film).stem in shared)
    return [film for film in ids if film in found]


def in_common(ids: Sequence[str], others: Sequence[str]) -> list[str]:
    """Films that are in both, as far as their names tell.

    A film's name is that of its file, without folder and ending, where no two of its set have the same; else its
    id. So NIH's films are found in tables that others made of them (RSNA's, Google's) where those keep the names.
    """
    return sorted(_names(ids) & _names(others))


def _names(ids: Sequence[str]) -> set[str]:
    stems = {PurePosixPath(film).stem for film in ids}
    return stems if len(stems) == len(ids) else set(ids)


def _by_set(ids: Sequence[str]) -> dict[str, list[str]]:
    """Ids by the set's name that Joined writes before them (with the slash), and without it; "" where there is none."""
    found: dict[str, list[str]] = {}
    known = names()
    for film in ids:
        label, slash, rest = film.partition("/")
        joined = slash and label.partition("-again")[0] in known
        found.setdefault(f"{label}/" if joined else "", []).append(rest if joined else film)
    return found
