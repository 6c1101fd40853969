"""A DICOM radiograph that several tests write."""

from __future__ import annotations

from typing import Any

import numpy as np


def radiograph(pixels: np.ndarray, photometric: str = "MONOCHROME2", **tags: Any) -> Any:
    """A pydicom FileDataset of grey or RGB (uint8 [..., 3]) pixels, explicit little endian, with attributes on top."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = FileDataset("film.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
    film.SOPClassUID, film.SOPInstanceUID, film.Modality = DigitalXRayImageStorageForPresentation, generate_uid(), "DX"
    meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
    film.StudyInstanceUID, film.SeriesInstanceUID = generate_uid(), generate_uid()
    *frames, film.Rows, film.Columns = pixels.shape[:-1] if photometric == "RGB" else pixels.shape
    if frames:
        film.NumberOfFrames = frames[0]
    film.SamplesPerPixel, film.PhotometricInterpretation = 3 if photometric == "RGB" else 1, photometric
    if photometric == "RGB":
        film.PlanarConfiguration = 0
    film.BitsAllocated = film.BitsStored = pixels.dtype.itemsize * 8
    film.HighBit, film.PixelRepresentation = film.BitsStored - 1, int(pixels.dtype.kind == "i")
    film.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(film, name, value)
    return film
