"""What uncertain and blank labels become: a policy, for all findings or for each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from axnet.data.findings import canonical

UNCERTAIN = -1.0
"""How CheXpert's and MIMIC-CXR's labellers write that a report is not sure of a finding."""

SMOOTH = (0.55, 0.85)
"""Range of "smooth", as Pham et al. (Neurocomputing 2021) draw labels for uncertain findings that count as present."""

Policy: TypeAlias = str | Sequence[Any] | Mapping[str, Any]
"""zeros, ones, ignore, smooth, "smooth(low, high)" or ("smooth", low, high), or a mapping of findings, by any of their
names (axnet.data.canonical), to these; "*" stands for the others."""

Range = tuple[float, float]
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_SMOOTH_BETWEEN = re.compile(rf"smooth(?:\({_NUMBER},{_NUMBER}\)|,{_NUMBER},{_NUMBER})")  # also as a list in YAML


class ForAllSets(dict[str, Any]):
    """A mapping for sets that are joined: it may have findings that only another one of them labels."""


def resolved(policy: Policy, findings: Sequence[str], known: Sequence[str] = ()) -> list[Range | None]:
    """Of each finding the range that its uncertain labels are drawn from, (0, 0) for zeros; None leaves them out.

    In a mapping, findings without an entry are left out, and "*" is the entry of all others. known: findings that it
    may have beside those asked for.
    Raises ValueError for another policy, an entry that is none of the findings, or two of one finding.
    """
    if not isinstance(policy, Mapping):
        return [_range(policy)] * len(findings)
    entries = named(policy)
    if not isinstance(policy, ForAllSets):
        check_entries(policy, (*findings, *known))
    ranges = {finding: _range(value) for finding, value in entries.items()}
    return [ranges.get(finding, ranges.get("*")) for finding in findings]


def check_entries(policy: Mapping[str, Any], findings: Sequence[str]) -> None:
    """Check that a mapping has these findings and "*" alone; raises ValueError that names another."""
    unknown = [name for name in policy if canonical(name) not in (*findings, "*")]
    if unknown:
        accepted = tuple(dict.fromkeys(findings))
        raise ValueError(f"uncertain has the entry {unknown[0]!r}, expected findings out of {accepted} or '*'.")


def named(policy: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping by canonical names; raises ValueError for two entries of one finding."""
    entries = {canonical(name): value for name, value in policy.items()}
    if len(entries) < len(policy):
        raise ValueError(f"uncertain has the entries {list(policy)}, two of which are one finding.")
    return entries


def read_policy(text: str) -> Policy:
    """The policy that a user names: a word, smooth(low, high), or one for each finding as JSON or in a file of it.

    Raises ValueError for another.
    """
    inline = text.lstrip().startswith("{")
    if not inline and not text.endswith(".json"):
        _range(text)
        return text
    try:
        policy = json.loads(text if inline else Path(text).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"uncertain is '{text}', which cannot be read as JSON ({error}).") from error
    if not isinstance(policy, dict):
        raise ValueError(f"uncertain is '{text}', which holds no mapping of findings to policies.")
    for value in named(policy).values():
        _range(value)
    return policy


def settled(
    raw: npt.NDArray[np.float64],
    ids: Sequence[str],
    findings: Sequence[str],
    policy: Policy,
    blank: str = "zeros",
    known: Sequence[str] = (),
) -> npt.NDArray[np.float32]:
    """Labels float32 [N,K] in [0,1], NaN for those to leave out, from raw ones: 0, 1, -1 for uncertain, NaN for blank.

    blank: "zeros", as CheXpert's authors read a finding that a report does not mention, or "ignore". What "smooth"
    draws is a function of the film's id and the finding, so that every run has the same labels. known: as in resolved.
    Raises ValueError as resolved does, or for another blank.
    """
    if blank not in ("zeros", "ignore"):
        raise ValueError(f"blank is {blank!r}, expected 'zeros' or 'ignore'.")
    labels = raw.astype(np.float32)
    if blank == "zeros":
        labels[np.isnan(raw)] = 0
    for column, (finding, drawn) in enumerate(zip(findings, resolved(policy, findings, known), strict=True)):
        rows = np.flatnonzero(raw[:, column] == UNCERTAIN).tolist()
        if drawn is None:
            labels[rows, column] = np.nan
        elif drawn[0] == drawn[1]:
            labels[rows, column] = drawn[0]
        else:
            shares = np.array([_share(ids[row], finding) for row in rows])
            labels[rows, column] = drawn[0] + (drawn[1] - drawn[0]) * shares
    return labels


def _range(policy: Any) -> Range | None:
    words: dict[Any, Range | None] = {"zeros": (0.0, 0.0), "ones": (1.0, 1.0), "ignore": None, "smooth": SMOOTH}
    if isinstance(policy, str):
        if policy in words:
            return words[policy]
        between = _SMOOTH_BETWEEN.fullmatch("".join(policy.split()))
        if between:
            policy = ("smooth", *(float(end) for end in between.groups() if end is not None))
    if isinstance(policy, Sequence) and len(policy) == 3 and policy[0] == "smooth":
        low, high = policy[1:]
        if all(isinstance(end, (int, float)) for end in (low, high)) and 0 <= low <= high <= 1:
            return float(low), float(high)
    raise ValueError(
        f"uncertain is {policy!r}, expected 'zeros', 'ones', 'ignore', 'smooth', 'smooth(low, high)' with "
        "0 <= low <= high <= 1, or a mapping of findings to these."
    )


def _share(film: str, finding: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{film}|{finding}".encode()).digest()[:8], "big") / 2**64
