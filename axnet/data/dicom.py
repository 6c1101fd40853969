"""Radiographs in DICOM files, through pydicom."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SUFFIXES = (".dcm", ".dicom")

_REQUIRED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
_NATIVE = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}

# (0002,0000), (0002,0001), (0002,0010), (0008,0000), (0008,0001), (0008,0005), (0008,0008), (0008,0016), (0008,0018),
# little endian, each with a length below 256 or the letters of an explicit type
_FIRST_ELEMENT = re.compile(
    rb"(\x02\x00[\x00\x01\x10]\x00|\x08\x00[\x00\x01\x05\x08\x16\x18]\x00)([A-Z]{2}|.\x00\x00\x00)", re.DOTALL
)

Pixels = npt.NDArray[Any]


def is_dicom(path: Path, content: bytes | None = None) -> bool:
    """Whether a file is named as a DICOM file or begins as one; content: what is in it, where it lies in memory."""
    return path.suffix.lower() in SUFFIXES or begins_as_dicom(path, content)


def begins_as_dicom(path: Path, content: bytes | None = None) -> bool:
    """Whether a file has DICOM's mark after its first 128 bytes, or begins with the first elements of a data set.

    Those are of group 0002 or 0008, where a file without preamble begins.
    """
    if content is None:
        with path.open("rb") as file:
            content = file.read(132)
    head = content[:132]
    return head[128:] == b"DICM" or _FIRST_ELEMENT.match(head) is not None


def read_dicom(path: Path, content: bytes | None = None, most_pixels: int | None = None) -> npt.NDArray[np.float32]:
    """Grey values of a DICOM radiograph as a viewer shows them: float32 [H, W] in [0, 1], dense tissue bright.

    Modality LUT or rescale, then VOI LUT or window, of each the first that is usable: elements that are empty, not
    numbers or out of range (a window of width 0) count as absent. MONOCHROME1 is inverted. The darkest and the
    brightest value of the film become 0 and 1; padding (PixelPaddingValue, and all up to PixelPaddingRangeLimit) is no
    part of the film and becomes 0. A file without the name of its transfer syntax is read as uncompressed.
    Raises ValueError for a file that is damaged, has no pixels, several frames or colour, ModuleNotFoundError without
    pydicom or without the decoder that a compressed file needs; all name the file, and the package to install.
    content: what is in the file, where it lies in memory. most_pixels: ValueError for a film of more by its header.
    """
    try:
        import pydicom
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"image file '{path}' is DICOM, which needs pydicom: pip install 'axnet[dicom]'.", name="pydicom"
        ) from None
    try:
        data = pydicom.dcmread(path if content is None else io.BytesIO(content), force=True)
        _tidy(data)
        problem = _problem(data)
        if problem is None and most_pixels is not None and data.Rows * data.Columns > most_pixels:
            problem = f"has {data.Columns} x {data.Rows} pixels, expected at most {most_pixels}"
    except Exception as error:  # pydicom raises its own kinds for every element that may be wrong
        raise _unreadable(path, error) from error
    if problem is not None:
        raise ValueError(f"image file '{path}' {problem}.")
    _check_decoder(path, data)
    try:
        stored = _stored(data)
        padding = _padding(data, stored)
        shown = _shown(data, stored, padding)
    except Exception as error:  # decoders do too
        raise _unreadable(path, error) from error
    if shown.ndim != 2 or not np.isfinite(shown).all():
        what = "values that are not finite" if shown.ndim == 2 else f"an array of shape {list(shown.shape)}"
        raise ValueError(f"image file '{path}' decodes to {what}, expected grey values [H, W].")
    film = _film(shown, padding)
    low, high = float(film.min()), float(film.max())
    scaled = ((shown - low) / (high - low) if high > low else np.zeros(shown.shape)).astype(np.float32)
    if data.PhotometricInterpretation == "MONOCHROME1":
        scaled = 1 - scaled
    scaled[padding] = 0
    return scaled


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return ValueError(f"image file '{path}' cannot be read as DICOM ({reason}).")


def _tidy(data: Any) -> None:
    """Name the transfer syntax where the file does not, and take out elements about pixels that are there but empty."""
    import pydicom

    if not hasattr(data, "file_meta") or data.file_meta is None:
        data.file_meta = pydicom.dataset.FileMetaDataset()
    if not data.file_meta.get("TransferSyntaxUID"):
        data.file_meta.TransferSyntaxUID = pydicom.uid.UID(_NATIVE[data.original_encoding])
    for tag in [tag for tag in data.keys() if tag.group in (0x0028, 0x2050, 0x7FE0)]:  # noqa: SIM118
        value = data.get_item(tag).value
        if value is None or (hasattr(value, "__len__") and len(value) == 0):
            del data[tag]
    data.PhotometricInterpretation = str(data.get("PhotometricInterpretation", "")).strip().upper()
    if "SamplesPerPixel" not in data:
        data.SamplesPerPixel = 1
    if "HighBit" not in data and "BitsStored" in data:
        data.HighBit = data.BitsStored - 1


def _problem(data: Any) -> str | None:
    """Why this is no single grey image, before any decoder is asked for."""
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return "cannot be read as DICOM (it has no pixels)"
    photometric = data.PhotometricInterpretation
    frames = int((_numbers(data, "NumberOfFrames") or [1])[0])
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or frames > 1 or data.SamplesPerPixel != 1:
        shape = [*([frames] if frames > 1 else []), data.get("Rows"), data.get("Columns")]
        shape += [data.SamplesPerPixel] if data.SamplesPerPixel != 1 else []
        return (
            f"holds pixels of shape {shape} in {photometric or 'no'} photometric interpretation, "
            "expected one frame [H, W] in MONOCHROME1 or MONOCHROME2"
        )
    required = _REQUIRED if "PixelData" in data else _REQUIRED[:3]
    missing = [name for name in required if name not in data]
    return f"cannot be read as DICOM (it has no {missing[0]})" if missing else None


def _check_decoder(path: Path, data: Any) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = data.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ValueError(
            f"image file '{path}' is compressed as {syntax.name}, which pydicom has no decoder for."
        ) from None
    if not decoder.is_available:
        raise ModuleNotFoundError(
            f"image file '{path}' is compressed as {syntax.name}, which needs a decoder: pip install 'axnet[dicom]'.",
            name="pylibjpeg",
        )


def _stored(data: Any) -> Pixels:
    """The stored values, also where they stand above the lowest bits of their cells, as files of before 2013 may."""
    below = 0 if data.file_meta.TransferSyntaxUID.is_compressed else int(data.HighBit) + 1 - int(data.BitsStored)
    if below <= 0 or "PixelData" not in data or int(data.HighBit) >= int(data.BitsAllocated):
        return np.asarray(data.pixel_array)
    bits, data.BitsStored = int(data.BitsStored), int(data.HighBit) + 1
    cells = np.asarray(data.pixel_array)
    data.BitsStored = bits
    if (cells & ((1 << below) - 1)).any() and cells.min() >= 0 and cells.max() < 1 << bits:
        return cells  # in the lowest bits after all
    return cells >> below


def _numbers(data: Any, keyword: str) -> list[float]:
    """The finite numbers of an element, none where it is absent or not made of numbers."""
    try:
        value = data.get(keyword)
        values = [] if value is None else [value] if isinstance(value, (int, float, str)) else list(value)
        return [number for number in map(float, values) if math.isfinite(number)]
    except (TypeError, ValueError):
        return []


def _stored_number(data: Any, keyword: str) -> int | None:
    """A pixel's value in an element whose type, US or SS, files get wrong, as the decoder returns it."""
    try:
        value = data.get(keyword)
    except (TypeError, ValueError):
        return None
    if isinstance(value, bytes):
        little = data.file_meta.TransferSyntaxUID != _NATIVE[False, False]
        value = int.from_bytes(value[:2], "little" if little else "big")
    if not isinstance(value, (int, float)):
        return None
    bits, value = int(data.BitsStored), int(value)
    span = 1 << bits
    value %= span  # what the container has above the stored bits, the decoder drops
    return value - span if data.PixelRepresentation == 1 and value >= span // 2 else value


def _padding(data: Any, stored: Pixels) -> npt.NDArray[np.bool_]:
    """Which stored values are padding: PixelPaddingValue, or all between it and PixelPaddingRangeLimit."""
    one = _stored_number(data, "PixelPaddingValue") if "PixelData" in data else None
    if one is None:
        return np.zeros(stored.shape, dtype=bool)
    other = _stored_number(data, "PixelPaddingRangeLimit")
    low, high = sorted((one, one if other is None else other))
    return np.asarray((stored >= low) & (stored <= high))


def _shown(data: Any, stored: Pixels, padding: npt.NDArray[np.bool_]) -> Pixels:
    """Values after modality and VOI transformation."""
    table = next(_tables(data, "ModalityLUTSequence"), None)
    if table is not None:
        values = _look_up(stored, *table)
    else:
        slope = (_numbers(data, "RescaleSlope") or [1.0])[0] or 1.0
        values = stored * slope + (_numbers(data, "RescaleIntercept") or [0.0])[0]
    for table in _tables(data, "VOILUTSequence"):
        return _look_up(values, *table)
    function = str(data.get("VOILUTFunction") or "").strip().upper()
    for centre, width in _windows(data):
        shown = _windowed(values, centre, width, function)
        if np.ptp(_film(shown, padding)) > 0 or np.ptp(_film(values, padding)) == 0:
            return shown  # else it was set for other values than these
    return values


def _film(values: Pixels, padding: npt.NDArray[np.bool_]) -> Pixels:
    """What is no padding; everything where nothing else is left."""
    return values[~padding] if padding.any() and not padding.all() else values


def _tables(data: Any, keyword: str) -> Iterator[tuple[Pixels, int]]:
    """The usable tables of a sequence, each with the value that its first entry belongs to."""
    for item in data.get(keyword) or ():
        try:
            count, first, bits = (int(value) for value in item.LUTDescriptor)
            entries = item.LUTData
            if isinstance(entries, bytes):
                little = data.file_meta.TransferSyntaxUID != _NATIVE[False, False]
                entries = np.frombuffer(entries, dtype="<u2" if little else ">u2")
            table = np.asarray(entries, dtype=np.int64).ravel()[: count or 65536]
        except (AttributeError, TypeError, ValueError):
            continue
        if len(table) == (count or 65536) and 8 <= bits <= 16 and table.min() >= 0:
            signed = data.get("PixelRepresentation") == 1 and first > 32767
            yield table, first - 65536 if signed else first


def _look_up(values: Pixels, table: Pixels, first: int) -> Pixels:
    return np.asarray(table[np.clip(np.rint(values - first), 0, len(table) - 1).astype(np.int64)], dtype=np.float64)


def _windows(data: Any) -> Iterator[tuple[float, float]]:
    """Pairs of centre and width; of the several that a film may have, those that are numbers."""
    pairs = zip(_texts(data, "WindowCenter"), _texts(data, "WindowWidth"), strict=False)
    for pair in pairs:
        try:
            centre, width = map(float, pair)
        except ValueError:
            continue
        if math.isfinite(centre) and math.isfinite(width) and width > 0:
            yield centre, width


def _texts(data: Any, keyword: str) -> list[str]:
    """The values of a decimal element as text, whether or not they are numbers."""
    if keyword not in data:
        return []
    raw = data.get_item(keyword).value
    if isinstance(raw, bytes):
        raw = raw.decode("ascii", errors="replace")
    if isinstance(raw, str):
        return [text.strip(" \0") for text in re.split(r"\\", raw)]
    return [str(value) for value in (raw if isinstance(raw, (list, tuple)) or hasattr(raw, "__iter__") else [raw])]


def _windowed(values: Pixels, centre: float, width: float, function: str) -> Pixels:
    """VOI LUT functions of DICOM PS3.3 C.11.2, to [0, 1]; LINEAR where the film names none that there is."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.asarray(((values - centre) / width + 0.5).clip(0, 1))
    if width <= 1:
        return np.asarray(values > centre - 0.5, dtype=np.float64)
    return np.asarray(((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1))
