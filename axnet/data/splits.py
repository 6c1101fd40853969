"""Splits: their names in reports, and patients who must not be on both sides."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def split_hash(ids: Iterable[str]) -> str:
    """SHA-256 (hexadecimal) of the sorted image list, one name per line: the same for any order of the same images."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(ids)).encode()).hexdigest()


def listed(split: str) -> list[str] | None:
    """The films of a list of one's own, one name per line, where split is the path of a .txt file; else None.

    Labels, 0 and 1, may follow a name, as in the lists of CheXNet's reproductions; they are left out.

    Raises FileNotFoundError for a file that is not there, ValueError for one that is empty or names a film twice.
    """
    if not split.endswith(".txt"):
        return None
    path = Path(split)
    if not path.is_file():
        raise FileNotFoundError(f"split list '{path}' does not exist.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    films = [re.sub(r"(\.[A-Za-z]+)(\s+[01])+$", r"\1", line) for line in lines]
    if not films:
        raise ValueError(f"split list '{path}' is empty, expected the name of a film per line.")
    if len(set(films)) < len(films):
        raise ValueError(f"split list '{path}' names {len(films) - len(set(films))} films more than once.")
    return films


def by_patient(patients: Sequence[str], fraction: float, seed: int) -> list[str]:
    """ "test" for about this fraction of the patients, "train" for the others; one entry per film.

    Where a patient goes depends on the name and the seed alone, so it stays when others come and go.
    Raises ValueError for a fraction that is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction is {fraction}, expected a number between 0 and 1.")
    sides = {}
    for patient in set(patients):
        draw = hashlib.sha256(f"{seed}|{patient}".encode()).digest()[:8]
        sides[patient] = "test" if int.from_bytes(draw, "big") < fraction * 2**64 else "train"
    return [sides[patient] for patient in patients]


def check_disjoint(sides: Mapping[str, Iterable[str]], where: str) -> None:
    """Check that no patient is in two splits; raises ValueError that names some and, as where, the table."""
    seen: dict[str, str] = {}
    for split, patients in sides.items():
        shared = sorted(patient for patient in set(patients) if seen.setdefault(patient, split) != split)
        if shared:
            shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
            raise ValueError(f"{where}: {len(shared)} patients are in both '{seen[shared[0]]}' and '{split}': {shown}.")
