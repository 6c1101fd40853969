"""What a report shows: the results of models and example images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axnet.metrics import Evaluation


@dataclass(frozen=True, eq=False)
class ModelResult:
    """A model's name, its evaluation, and the scores [N, K] that were evaluated."""

    name: str
    evaluation: Evaluation
    scores: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Example:
    """One image with what the model saw in it.

    image [H, W]: uint8, or floating in [0, 1]. masks: name to [H, W], bool or numbers, drawn as the contour at half of
    255 (uint8) or of 1. prob_maps: finding to [h, w] in [0, 1], of any size, stretched over the image. truth: findings
    that are present. predicted: finding to probability. id: what the image is called. ctr: cardiothoracic ratio; taken
    from the masks "heart" and "lungs" (or "left_lung" and "right_lung") where it is not given. note: said above it.
    widths: lines (first column, last column, row) drawn over the masks: the widths that the ratio compares.
    Raises ValueError on other shapes or on values outside [0, 1].
    """

    image: NDArray[Any]
    masks: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    prob_maps: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    truth: Sequence[str] = ()
    predicted: Mapping[str, float] = field(default_factory=dict)
    id: str = ""
    ctr: float | None = None
    note: str = ""
    widths: Sequence[tuple[float, float, float]] = ()

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        _plane("image", self.image)
        for name, mask in self.masks.items():
            _plane(f"masks[{name!r}]", mask)
            if mask.shape != self.image.shape:
                raise ValueError(
                    f"masks[{name!r}] has shape {list(mask.shape)}, expected that of image, {list(self.image.shape)}."
                )
        for name, values in self.prob_maps.items():
            _plane(f"prob_maps[{name!r}]", values, accepts_uint8=False)
        for name, value in self.predicted.items():
            if not 0 <= value <= 1:
                raise ValueError(f"predicted[{name!r}] is {value}, expected a probability in [0, 1].")


def _plane(name: str, values: NDArray[Any], *, accepts_uint8: bool = True) -> None:
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{name} has shape {list(values.shape)}, expected two dimensions of at least one pixel.")
    if accepts_uint8 and values.dtype == np.uint8:
        return
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        accepted = "values in [0, 1] or uint8" if accepts_uint8 else "values in [0, 1]"
        raise ValueError(f"{name} has {values.dtype} values from {low:.4g} to {high:.4g}, expected {accepted}.")


def check_models(models: Sequence[ModelResult], shape: tuple[int, ...], findings: Sequence[str]) -> None:
    """Raise ValueError where models, labels and findings do not belong together."""
    if not models:
        raise ValueError("models is empty, expected at least one ModelResult.")
    if len(findings) != shape[1]:
        raise ValueError(f"findings has {len(findings)} names, expected {shape[1]}, one per column of y_true.")
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise ValueError(f"models are named {names}, expected different names.")
    for model in models:
        if np.shape(model.scores) != shape:
            raise ValueError(
                f"scores of {model.name!r} has shape {list(np.shape(model.scores))}, "
                f"expected that of y_true, {list(shape)}."
            )
        evaluated = [c.name for c in model.evaluation.classes]
        if evaluated != list(findings):
            raise ValueError(f"evaluation of {model.name!r} is of {evaluated}, expected the findings {list(findings)}.")
