"""Films for a report: various ones, and those that a classifier got most wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from torch import nn

from axnet.data import ANATOMIES
from axnet.metrics.evaluation import LEAST_POSITIVES
from axnet.models import AnatomyXNet, Preprocessing
from axnet.report import Example
from axnet.train.data import Batches, XraySet
from axnet.train.localising import finding_maps, has_maps, shared_map

_MAPS_SHOWN = 4


def varied(
    model: nn.Module, preprocessing: Preprocessing, test: XraySet, score: npt.NDArray[np.float32], count: int
) -> list[Example]:
    """Images with most findings first, no two with the same ones, and the maps that the model pooled them by."""
    chosen = _varied(test.labels.numpy(), count)
    shown = []
    for index in chosen:
        present = [k for k in range(len(test.findings)) if test.labels[index, k] == 1]
        likely = [k for k in np.argsort(-score[index]).tolist() if k not in present]
        shown.append((present + likely)[:_MAPS_SHOWN])
    guided = isinstance(model, AnatomyXNet)  # Grad-CAM of every finding of every film would take long
    return _cards(
        model, preprocessing, test, score, chosen, shown if guided else [[]] * len(chosen), [""] * len(chosen)
    )


def hardest(
    model: nn.Module, preprocessing: Preprocessing, test: XraySet, score: npt.NDArray[np.float32], count: int
) -> list[Example]:
    """The films that are furthest on the wrong side of the others: half of them missed, half false alarms.

    Taken by the rank of the film's score among all films of a finding; of a finding with enough positives, one miss and
    one false alarm at most, and each film once.
    """
    labels = test.labels.numpy()
    often = [k for k in range(labels.shape[1]) if (labels[:, k] == 1).sum() >= LEAST_POSITIVES]
    share = rankdata(score, axis=0) / len(score)
    found: list[tuple[int, int, str]] = []
    for value, kind in ((1, "missed"), (0, "false alarm")):
        wrong = []
        for k in often:
            rows = np.flatnonzero(labels[:, k] == value)
            if len(rows):
                rank = share[rows, k] if value else 1 - share[rows, k]
                wrong += [(float(rank[at]), int(rows[at]), k) for at in np.argsort(rank, kind="stable")[:count]]
        taken: list[tuple[int, int]] = []
        for _, row, k in sorted(wrong):
            used = {one for one, _, _ in found} | {one for one, _ in taken}
            if row not in used and k not in {one for _, one in taken} and len(taken) < (count + 1 - value) // 2:
                taken.append((row, k))
        for row, k in taken:
            above = float((score[:, k] < score[row, k]).mean())
            position = f"scored above {100 * above:.0f} % of the films"
            found.append((row, k, f"{test.findings[k]}, {kind}: {position}"))
    return _cards(
        model, preprocessing, test, score, [f[0] for f in found], [[f[1]] for f in found], [f[2] for f in found]
    )


def _cards(
    model: nn.Module,
    preprocessing: Preprocessing,
    test: XraySet,
    score: npt.NDArray[np.float32],
    chosen: Sequence[int],
    shown: Sequence[Sequence[int]],
    notes: Sequence[str],
) -> list[Example]:
    if not chosen:
        return []
    batch = Batches(test).__getitems__(list(chosen))
    wanted = sorted({k for columns in shown for k in columns})
    maps = finding_maps(model, preprocessing, test, chosen, wanted) if wanted and has_maps(model) else None
    blank = not batch["mask"].any()
    cards = []
    for row, (index, columns) in enumerate(zip(chosen, shown, strict=True)):
        named = {test.findings[k]: k for k in columns}
        if shared_map(model) and columns:
            named = {"all findings": columns[0]}
        cards.append(
            Example(
                image=batch["image"][row, 0].numpy(),
                masks={} if blank else dict(zip(ANATOMIES, batch["mask"][row].numpy(), strict=True)),
                prob_maps={} if maps is None else {name: maps[row, k] for name, k in named.items()},
                truth=[test.findings[k] for k in range(len(test.findings)) if test.labels[index, k] == 1],
                predicted={finding: float(score[index, k]) for k, finding in enumerate(test.findings)},
                id=test.ids[index],
                note=notes[row],
            )
        )
    return cards


def _varied(labels: npt.NDArray[np.float32], count: int) -> list[int]:
    order: Sequence[int] = np.argsort(-np.nansum(labels, 1), kind="stable").tolist()
    seen: set[bytes] = set()
    chosen = []
    for index in order:
        key = labels[index].tobytes()
        if key not in seen:
            seen.add(key)
            chosen.append(index)
    step = max(1, len(chosen) // max(1, count))
    return chosen[::step][:count]
