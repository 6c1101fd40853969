"""From logits to calibrated probabilities and calls: kept in the checkpoint, chosen on validation films."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """How one classifier's logits are read.

    temperature: the probability of a finding is sigmoid(logit / temperature), with one temperature or one per finding.
    thresholds: per finding, in the order of the logits: a calibrated probability of so much or more is called
    positive; None where too few validation films have the finding, so that no call is made. sensitivity, specificity,
    positives_per_1000: of those calls on the validation films; None with the threshold. rule: how the thresholds were
    chosen, in words; films: on what.
    Raises ValueError for lists of different lengths, or a temperature or threshold out of range.
    """

    temperature: float | tuple[float, ...]
    thresholds: tuple[float | None, ...]
    sensitivity: tuple[float | None, ...]
    specificity: tuple[float | None, ...]
    positives_per_1000: tuple[float | None, ...]
    rule: str
    films: str

    def __post_init__(self) -> None:
        """Check the numbers."""
        each = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if not all(value > 0 for value in each):
            raise ValueError(f"temperature is {self.temperature}, expected a positive number.")
        if isinstance(self.temperature, tuple) and len(each) != len(self.thresholds):
            raise ValueError(f"temperature has {len(each)} numbers for {len(self.thresholds)} thresholds.")
        for name in ("sensitivity", "specificity", "positives_per_1000"):
            values = getattr(self, name)
            if [value is None for value in values] != [value is None for value in self.thresholds]:
                raise ValueError(f"{name} is {values}, expected a number where thresholds {self.thresholds} has one.")
        # the next number above 1 calls none of the films, where even a probability of 1 is to be left uncalled
        most = math.nextafter(1, 2)
        wrong = [value for value in self.thresholds if value is not None and not 0 <= value <= most]
        if wrong:
            raise ValueError(f"thresholds has {wrong[0]}, expected probabilities.")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of logits [..., K]; of any shape under one temperature."""
        if isinstance(self.temperature, tuple):
            return (logits / torch.tensor(self.temperature, dtype=logits.dtype, device=logits.device)).sigmoid()
        return (logits / self.temperature).sigmoid()

    def calls(self, probabilities: Tensor) -> list[list[bool | None]]:
        """Per film and finding of probabilities [N,K], whether it is called; None where no call is made."""
        limits = torch.tensor([2.0 if value is None else value for value in self.thresholds], dtype=torch.float64)
        positive = (probabilities.double() >= limits).tolist()
        return [
            [None if limit is None else call for call, limit in zip(row, self.thresholds, strict=True)]
            for row in positive
        ]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Inverse of to_dict."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)
