"""Labels of a training or test set: 0, 1, or NaN for unknown; anything else is named with its film before a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def checked_labels(
    labels: Any, findings: Sequence[str], ids: Sequence[str], name: str = "labels", *, smooth: bool = False
) -> Tensor:
    """Labels as float32 [N,K]: 0, 1, or NaN for unknown, which losses, class weights and metrics leave out.

    smooth: whether values between 0 and 1 count too, as training may use for uncertain labels.

    labels: an array, tensor or table [N,K] of numbers or truth values; None and pandas' NA count as NaN. findings: K
    names; ids: N films; name: of the set, for errors.
    Raises ValueError that names the label, the finding and the film of what is neither, and for another shape.
    """
    from axnet.metrics.arrays import numbers  # with axnet.metrics comes scikit-learn, which prediction does not need

    try:
        values = numbers(labels)
    except (TypeError, ValueError):
        values = np.array(_strange(labels, findings, ids, name), dtype=np.float64)
    if values.shape != (len(ids), len(findings)):
        raise ValueError(
            f"{name} has labels of shape {list(values.shape)}, expected [{len(ids)}, {len(findings)}]: a row per film, "
            "a column per finding."
        )
    strange = ~(np.isnan(values) | ((values >= 0) & (values <= 1) if smooth else (values == 0) | (values == 1)))
    if strange.any():
        row, column = np.argwhere(strange)[0].tolist()
        _refuse(f"{values[row, column]:g}", findings[column], ids[row], int(strange.sum()), name)
    return torch.from_numpy(values.astype(np.float32))


def counts(labels: Tensor, findings: Sequence[str]) -> str:
    """How many labels [N,K] are positive (also smoothed ones), negative and left out, one line per finding."""
    width = max(map(len, findings), default=0)
    lines = [f"{'':{width}}  positive  negative  left out"]
    for finding, column in zip(findings, labels.unbind(1), strict=True):
        positive, negative = int((column > 0).sum()), int((column == 0).sum())
        lines.append(f"{finding:{width}}  {positive:8}  {negative:8}  {len(column) - positive - negative:8}")
    return "\n".join(lines)


def hard(labels: Tensor) -> Tensor:
    """Labels of which those between 0 and 1 are NaN: smoothed to train on, but no truth to measure with."""
    return labels.masked_fill((labels > 0) & (labels < 1), float("nan"))


def known_findings(labels: Tensor, findings: Sequence[str], name: str) -> None:
    """Check that every finding of checked labels [N,K] has a label to learn from; raises ValueError that names it."""
    unknown = labels.isnan().all(0).nonzero().flatten().tolist()
    if unknown:
        raise ValueError(f"{name} has no known label of finding '{findings[unknown[0]]}', expected some 0 or 1.")


def _strange(labels: Any, findings: Sequence[str], ids: Sequence[str], name: str) -> Any:
    """Labels among which are texts: refuses the first that is no number, else gives them back."""
    from axnet.metrics.arrays import missing

    table = np.asarray(labels, dtype=object)
    if table.shape == (len(ids), len(findings)):
        for (row, column), value in np.ndenumerate(table):
            try:
                float("nan" if missing(value) else value)
            except (TypeError, ValueError):
                _refuse(repr(value), findings[column], ids[row], 1, name)
    raise ValueError(f"{name} has labels that are no numbers, expected 0, 1, or NaN for unknown.")


def _refuse(value: str, finding: str, film: str, count: int, name: str) -> None:
    more = f" and {count - 1} labels more like it" if count > 1 else ""
    raise ValueError(
        f"{name} has the label {value} of finding '{finding}' on film '{film}'{more}, expected 0, 1, or NaN for "
        "unknown, which is left out of training."
    )
