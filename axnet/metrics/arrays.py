"""Arrays of other libraries as numpy's: tensors with a gradient or on a GPU, tables of pandas, lists of any of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def numbers(values: Any) -> NDArray[np.float64]:
    """Values as float64; what is missing (None, pandas' NA, a masked entry) becomes NaN.

    Raises TypeError or ValueError for what is no array of real numbers.
    """
    plain = _plain(values)
    if _of_pandas(plain):
        plain = plain.to_numpy(dtype=object)
    if isinstance(plain, np.ma.MaskedArray):
        data = np.ma.getdata(plain)
        plain = np.where(np.ma.getmaskarray(plain), np.nan, data.astype(object) if data.dtype.kind in "iu" else data)
    if np.iscomplexobj(plain):
        raise ValueError("it holds complex numbers")
    try:
        found = np.asarray(plain, dtype=np.float64)
    except TypeError:  # pandas' NA among the numbers
        mixed = np.asarray(plain, dtype=object)
        kept = [np.nan if missing(value) else value for value in mixed.ravel()]
        found = np.asarray(kept, dtype=np.float64).reshape(mixed.shape)
    large = np.abs(found) >= 2**53
    if large.any() and any(_inexact(value) for value in np.asarray(plain, dtype=object)[large]):
        raise ValueError("it holds whole numbers beyond 2^53, which float64 cannot tell apart")
    return found


def _inexact(value: Any) -> bool:
    return isinstance(value, int | np.integer) and abs(int(value)) > 2**53


def identifiers(values: Any) -> NDArray[Any]:
    """Values [N] of any types, mixed ones as they are: the number 1 and the text "1" stay apart.

    Raises ValueError when one is missing: None, NaN, NaT, pandas' NA, a masked entry, an empty text.
    """
    plain = _plain(values)
    if isinstance(plain, list | tuple) and not any(np.ndim(v) for v in plain if isinstance(v, list | np.ndarray)):
        array = np.empty(len(plain), dtype=object)  # not np.asarray: it makes the text "1" of a 1 beside a text
        for row, value in enumerate(plain):
            array[row] = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    elif isinstance(plain, np.ma.MaskedArray):
        array = np.ma.getdata(plain).astype(object)
        array[np.ma.getmaskarray(plain)] = None
    else:
        array = np.asarray(plain)
    if array.dtype.kind in "OfcMmU":
        absent = [row for row, value in enumerate(array.ravel()) if missing(value)]
        if absent:
            raise ValueError(f"row {absent[0]} has none ({len(absent)} of {array.size} rows in all)")
    return array


def missing(value: Any) -> bool:
    """Whether a single value stands for none."""
    if value is None or type(value).__name__ == "NAType":
        return True
    unequal = value != value  # NaN and NaT are
    return (isinstance(unequal, bool | np.bool_) and bool(unequal)) or (isinstance(value, str) and not value)


def _plain(values: Any) -> Any:
    """Tensors as numpy arrays, also within lists."""
    if hasattr(values, "detach"):
        if values.device.type == "meta":
            raise ValueError("it is a tensor without values, on the device meta")
        tensor = values.detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
    if isinstance(values, list | tuple):
        return type(values)([_plain(value) for value in values]) if _has_tensor(values) else values
    return values


def _has_tensor(values: Any) -> bool:
    if isinstance(values, list | tuple):
        return any(_has_tensor(value) for value in values)
    return hasattr(values, "detach")


def _of_pandas(values: Any) -> bool:
    return type(values).__module__.partition(".")[0] == "pandas"
