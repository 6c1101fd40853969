"""Choose how a classifier's logits are read: a temperature and operating points, on films kept for that."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from axnet.metrics import fit_temperature, operating_points
from axnet.metrics.operating import RULES, Rule
from axnet.models.calibration import Calibration

Temperature = Literal["overall", "per-finding"]
TEMPERATURES: tuple[str, ...] = ("overall", "per-finding")
LEAST = 8
"""A finding is called only where so many of the films have it, and so many have not."""

_WORDS = {
    "youden": "the largest sensitivity + specificity - 1",
    "sensitivity": "the highest threshold with a sensitivity of at least {target:g}",
    "specificity": "the lowest threshold with a specificity of at least {target:g}",
    "prevalence": "as many films are called positive as are",
}


def parse_rule(text: str) -> tuple[Rule, float | None]:
    """A rule as it is written on the command line: youden, sensitivity=0.9, specificity=0.9, prevalence[=0.1].

    Raises ValueError for another.
    """
    name, given, number = text.partition("=")
    if name not in RULES:
        raise ValueError(
            f"rule is '{text}', expected youden, sensitivity=S, specificity=S, prevalence or prevalence=P."
        )
    if name in ("sensitivity", "specificity") and not given:
        raise ValueError(f"rule is '{text}', expected the {name} to reach, as in {name}=0.9.")
    if name == "youden" and given:
        raise ValueError(f"rule is '{text}', expected youden alone.")
    try:
        target = float(number) if given else None
    except ValueError:
        target = float("nan")
    if target is not None and not 0 < target < 1:
        raise ValueError(f"rule is '{text}', expected a number between 0 and 1 after the equals sign.")
    return name, target  # type: ignore[return-value]


def calibrate(
    labels: npt.NDArray[Any],
    logits: npt.NDArray[Any],
    rule: Rule = "prevalence",
    target: float | None = None,
    *,
    temperature: Temperature = "overall",
    films: str,
) -> Calibration:
    """A temperature by maximum likelihood, and a threshold per finding on the probabilities that it makes.

    labels [N,K]: 0, 1, or NaN for unknown; logits [N,K]: of films that no figure is reported on afterwards. rule,
    target: see axnet.metrics.operating_points. temperature: one for all findings, or "per-finding"; a finding with
    fewer than LEAST films of either label, or whose logits rank them no better than chance, then gets the overall one.
    films: what they were, in words.
    A finding with fewer than LEAST films of either label gets no threshold, so that no call is made.
    Raises ValueError as fit_temperature and operating_points do.
    """
    if temperature not in TEMPERATURES:
        raise ValueError(f"temperature is {temperature!r}, expected one of {TEMPERATURES}.")
    enough = [min((column == 1).sum(), (column == 0).sum()) >= LEAST for column in labels.T]
    overall = float(fit_temperature(labels, logits))
    each = [overall] * labels.shape[1]
    if temperature == "per-finding":
        for k in np.flatnonzero(enough).tolist():
            with suppress(ValueError):  # no temperature above 0 is best
                each[k] = float(fit_temperature(labels[:, [k]], logits[:, [k]]))
    chosen = tuple(each) if temperature == "per-finding" else overall
    none = (None,) * labels.shape[1]
    # by what will read the logits: a threshold lies on a film's probability, to the last bit
    plain = Calibration(chosen, none, none, none, none, rule="", films="")
    probabilities = plain.probabilities(torch.as_tensor(logits, dtype=torch.float32)).numpy()
    points = [
        point if usable else None
        for point, usable in zip(operating_points(labels, probabilities, rule, target), enough, strict=True)
    ]
    words = _WORDS[rule].format(target=target)
    if rule == "prevalence" and target is not None:
        words = f"{1000 * target:g} of 1,000 films are called positive, by finding"
    return Calibration(
        temperature=chosen,
        thresholds=tuple(None if p is None else p.threshold for p in points),
        sensitivity=tuple(None if p is None else round(p.sensitivity, 4) for p in points),
        specificity=tuple(None if p is None else round(p.specificity, 4) for p in points),
        positives_per_1000=tuple(None if p is None else round(p.positives_per_1000, 1) for p in points),
        rule=words,
        films=films,
    )
