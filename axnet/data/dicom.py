"""Radiographs in DICOM files, through pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

SUFFIXES = (".dcm", ".dicom")


def is_dicom(path: Path) -> bool:
    """Whether a file is named as a DICOM file or begins as one."""
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path) -> npt.NDArray[np.float32]:
    """Grey values of a DICOM radiograph as a viewer shows them: float32 [H, W] in [0, 1], dense tissue bright.

    Rescale (or modality LUT), then VOI LUT or window, the first where there are several; MONOCHROME1 is inverted. The
    darkest and the brightest value that result become 0 and 1.
    Raises ValueError for a file that is damaged, has no pixels, several frames or colour, ModuleNotFoundError without
    pydicom or without the package that a compressed file needs; all name the file or the package.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"image file '{path}' is DICOM, which needs pydicom: pip install 'axnet[dicom]'."
        ) from None
    try:
        data = pydicom.dcmread(path, force=path.suffix.lower() in SUFFIXES)
        photometric = str(data.get("PhotometricInterpretation", ""))
        pixels = data.pixel_array
        shown = np.asarray(apply_voi_lut(apply_modality_lut(pixels, data), data, index=0), dtype=np.float32)
    except Exception as error:  # pydicom and its decoders raise their own kinds for every tag that may be wrong
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"image file '{path}' cannot be read as DICOM ({reason}).") from error
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or shown.ndim != 2:
        raise ValueError(
            f"image file '{path}' holds pixels of shape {list(shown.shape)} in {photometric or 'no'} photometric "
            "interpretation, expected one frame [H, W] in MONOCHROME1 or MONOCHROME2."
        )
    low, high = float(shown.min()), float(shown.max())
    scaled = (shown - low) / (high - low) if high > low else np.zeros_like(shown)
    return np.asarray(1 - scaled if photometric == "MONOCHROME1" else scaled, dtype=np.float32)
