"""Argument checks of the measures: one sentence that names the argument, what came, what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from axnet.metrics import arrays

Floats = NDArray[np.float64]
_AXES = {1: "[N]", 2: "[N, K]", 3: "[R, N, K]"}


def dimensions(name: str, values: ArrayLike) -> int:
    """Number of dimensions of values that may have one or two."""
    return 1 if _numbers(name, values, "[N] or [N, K]").ndim == 1 else 2


def array(name: str, values: ArrayLike, dims: int) -> Floats:
    """Values as a non-empty float64 array of `dims` dimensions."""
    a = _numbers(name, values, _AXES[dims])
    if a.ndim != dims:
        raise ValueError(f"{name} has shape {list(a.shape)}, expected {dims} dimensions {_AXES[dims]}.")
    if a.size == 0:
        raise ValueError(f"{name} is empty (shape {list(a.shape)}), expected at least one value.")
    return a


def _numbers(name: str, values: ArrayLike, axes: str) -> Floats:
    try:
        return arrays.numbers(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers ({error}), expected shape {axes}.") from error


def labels(name: str, values: ArrayLike, dims: int, *, unknown: bool = True) -> Floats:
    """Labels 0 and 1 (and NaN where `unknown`) as a float64 array of `dims` dimensions."""
    y = array(name, values, dims)
    strange = ~((y == 0) | (y == 1))
    if unknown:
        strange &= ~np.isnan(y)
    if strange.any():
        accepted = "0, 1 or NaN (unknown)" if unknown else "0 or 1"
        raise ValueError(f"{name} holds the label {y[strange][0]:g}, expected {accepted}.")
    return y


def scores(name: str, values: ArrayLike, like: Floats, *, probability: bool = False) -> Floats:
    """Finite scores of the shape of the labels `like`; within [0, 1] where `probability`."""
    s = array(name, values, like.ndim)
    if s.shape != like.shape:
        raise ValueError(f"{name} has shape {list(s.shape)}, expected that of y_true, {list(like.shape)}.")
    if not np.isfinite(s).all():
        raise ValueError(f"{name} holds {s[~np.isfinite(s)][0]}, expected finite numbers.")
    if probability and (s.min() < 0 or s.max() > 1):
        raise ValueError(f"{name} has values from {s.min():.4g} to {s.max():.4g}, expected probabilities in [0, 1].")
    return s


def names(name: str, values: Sequence[str], like: Floats) -> list[str]:
    """Different names, one per column of the labels `like` [N, K]."""
    given = [str(value) for value in values]
    if len(given) != like.shape[1] or len(set(given)) != len(given):
        raise ValueError(f"{name} is {given}, expected {like.shape[1]} different names, one per column of y_true.")
    return given


def groups(values: ArrayLike | None, samples: int) -> NDArray[np.intp] | None:
    """Group identifiers [N] of any types as numbers 0 … G-1."""
    if values is None:
        return None
    try:
        g = arrays.identifiers(values)
    except ValueError as error:
        raise ValueError(f"a group is missing: {error}, expected an identifier for every row of y_true.") from error
    if g.shape != (samples,):
        raise ValueError(f"groups has shape {list(g.shape)}, expected [{samples}], one identifier per row of y_true.")
    try:
        return np.unique(g, return_inverse=True)[1].astype(np.intp)
    except TypeError:  # types that have no order among each other: numbered as they come
        pass
    try:
        numbers: dict[Any, int] = {}
        return np.array([numbers.setdefault(value, len(numbers)) for value in g.tolist()], dtype=np.intp)
    except TypeError as error:
        raise ValueError(f"groups holds what cannot be compared ({error}), expected numbers or texts.") from error


def fraction(name: str, value: float) -> float:
    """A number strictly between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value!r}, expected a number between 0 and 1, both excluded.")
    return float(value)


def at_least(name: str, value: int, minimum: int) -> int:
    """A whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {minimum}.")
    return int(value)
