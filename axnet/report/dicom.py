"""Results as DICOM objects that refer to their film: organs as a segmentation, findings as a structured report.

Through highdicom (`pip install 'axnet[dicom]'`). Not for medical use: nobody has verified what is written, and the
reports say so.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from axnet import __version__
from axnet.data.dicom import is_dicom
from axnet.data.files import replacing
from axnet.data.findings import ORGANS
from axnet.paths import StrPath

OWN_SCHEME = "99AXNET"
"""Coding scheme of what has no code in the part of SNOMED CT that DICOM uses: the names of the data sets' labels."""

_CODES = {
    "Cardiomegaly": "Cardiomegaly",
    "Edema": "PulmonaryEdema",
    "Effusion": "PleuralEffusion",
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pneumothorax": "Pneumothorax",
}
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_MAKER: dict[str, Any] = {"manufacturer": "axnet", "manufacturer_model_name": "axnet", "software_versions": __version__}
_LONGEST = 64  # characters of a code's meaning and of an algorithm's name


def read_source(path: StrPath) -> Any:
    """The data set of a DICOM film, ready to be referred to; patient and study elements that it lacks become empty.

    Raises ValueError for a file that is no DICOM, or without the identifiers that a reference consists of;
    ModuleNotFoundError without highdicom.
    """
    file = Path(path)
    if not is_dicom(file):
        raise ValueError(f"image file '{file}' is not DICOM, expected a film that a DICOM object can refer to.")
    try:
        import highdicom  # noqa: F401
        import pydicom
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "DICOM objects are written by highdicom: pip install 'axnet[dicom]'.", name=error.name
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of pydicom, about the values that are taken out here
        source = pydicom.dcmread(file, force=True)
        source.decode()
        source.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: highdicom takes no sets that are extended, as Japan's are
        missing = [name for name in _IDENTITY if not source.get(name)]
        if missing:
            raise ValueError(f"image file '{file}' has no {missing[0]}, so no DICOM object can refer to it.")
        for name in _MAY_BE_EMPTY:
            if not _usable(source, name):
                setattr(source, name, "")
    return source


def _usable(source: Any, name: str) -> bool:
    """Whether an element is there and is what its kind should be; films have dates and sexes that are not."""
    from pydicom.valuerep import DA, TM

    try:
        value = source.get(name)
        if value is None:
            return False
        if name.endswith("Date"):
            DA(str(value))
        if name.endswith("Time"):
            TM(str(value))
        return name != "PatientSex" or value in ("", "M", "F", "O")
    except (ValueError, TypeError):
        return False


def write_segmentation(
    path: StrPath, source: Any, masks: npt.NDArray[np.bool_], *, algorithm: str = "axnet segmenter"
) -> None:
    """Write organs as a DICOM segmentation of one segment each.

    path: the file; it is replaced in one step. source: of read_source. masks: bool [3,H,W] in the film's own frame, in
    the order of axnet.data.ORGANS; organs that are empty are left out. algorithm: its name.
    Raises ValueError for masks of another shape than the film or without any organ, and as write_report.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    shape = (len(ORGANS), source.Rows, source.Columns)
    if masks.shape != shape:
        raise ValueError(f"masks has shape {list(masks.shape)}, expected {list(shape)} of the film.")
    found = [index for index in range(len(ORGANS)) if masks[index].any()]
    if not found:
        raise ValueError("masks is empty, expected at least one organ for a DICOM segmentation.")
    segments = []
    for number, index in enumerate(found, start=1):
        segments.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=ORGANS[index].replace("_", " "),
                segmented_property_category=codes.SCT.AnatomicalStructure,
                segmented_property_type=codes.SCT.Heart if ORGANS[index] == "heart" else codes.SCT.Lung,
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=_algorithm(algorithm),
                tracking_uid=highdicom.UID(),
                tracking_id=ORGANS[index],
            )
        )
        side = ORGANS[index].partition("_")[0].title()
        if side in ("Left", "Right"):
            code = highdicom.sr.CodedConcept.from_code(getattr(codes.SCT, side))
            segments[-1].SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [code]
    with _refused(source):
        made = highdicom.seg.Segmentation(
            source_images=[source],
            pixel_array=np.moveaxis(masks[found], 0, -1)[None].astype(np.uint8),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=highdicom.UID(),
            series_number=900,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            device_serial_number="0",
            content_label="ANATOMY",
            content_description="Lungs and heart, not for medical use",
            series_description="axnet anatomy",
            **_MAKER,
        )
    _save(made, path)


def write_report(
    path: StrPath,
    source: Any,
    probabilities: Mapping[str, float],
    positive: Mapping[str, bool],
    ctr: float = math.nan,
    flags: Sequence[str] = (),
    *,
    algorithm: str = "axnet classifier",
) -> None:
    """Write what a classifier says of a film as a DICOM structured report (TID 1500).

    path: the file; it is replaced in one step. source: of read_source. probabilities: per finding, each a measurement
    group with the film as its source. positive: per finding, the call; findings without one have a probability alone.
    ctr: cardiothoracic ratio, left out where it is nan. flags: why no call is made. algorithm: its name.
    Raises ValueError for a film with elements that highdicom does not take.
    """
    import highdicom
    from highdicom import sr
    from pydicom.sr.codedict import codes

    film = sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)

    def group(name: str, finding: Any, **content: Any) -> Any:
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(highdicom.UID(), name),
            finding_type=finding,
            algorithm_id=sr.AlgorithmIdentification(algorithm[:_LONGEST], __version__),
            source_images=[film],
            **content,
        )

    def measured(name: Any, value: float) -> list[Any]:
        return [sr.Measurement(name=name, value=round(value, 6), unit=codes.UCUM.NoUnits)]

    groups = []
    for finding, probability in probabilities.items():
        calls = []
        if finding in positive:
            answer = codes.SCT.Positive if positive[finding] else codes.SCT.Negative
            calls = [sr.QualitativeEvaluation(_own("Call at the stored operating point"), answer)]
        said = {"measurements": measured(codes.DCM.Probability, probability), "qualitative_evaluations": calls}
        groups.append(group(finding, _finding(finding), **said))
    if not math.isnan(ctr):
        ratio = _own("Cardiothoracic ratio")
        groups.append(group("CTR", codes.SCT.Heart, measurements=measured(ratio, ctr)))
    if flags:
        reasons = [sr.QualitativeEvaluation(_own("No call is made"), _own(flag)) for flag in flags]
        groups.append(group("flags", codes.SCT.Chest, qualitative_evaluations=reasons))
    device = sr.DeviceObserverIdentifyingAttributes(highdicom.UID(), name="axnet", model_name="axnet")
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, observer_identifying_attributes=device)
        ),
        procedure_reported=sr.CodedConcept("30745-4", "LN", "XR Chest Views"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    with _refused(source):
        made = sr.ComprehensiveSR(
            evidence=[source],
            content=content[0],
            series_instance_uid=highdicom.UID(),
            series_number=901,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            is_complete=True,
            is_verified=False,
            series_description="axnet findings, not for medical use",
            **_MAKER,
        )
    _save(made, path)


@contextmanager
def _refused(source: Any) -> Iterator[None]:
    """Raises ValueError for a film whose elements highdicom does not take, of whatever kind its own error is."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"image file '{source.filename}': no DICOM object can refer to it ({error}).") from error


def _algorithm(name: str) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.AlgorithmIdentificationSequence(
        name[:_LONGEST], family=codes.cid7162.ArtificialIntelligence, version=__version__
    )


def _finding(name: str) -> Any:
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    return CodedConcept.from_code(getattr(codes.SCT, _CODES[name])) if name in _CODES else _own(name)


def _own(meaning: str) -> Any:
    """A code of our own: the words, and what they come to in 16 letters; long ones end in a digest of the words."""
    from highdicom.sr import CodedConcept

    value = re.sub(r"[^A-Z0-9]+", "_", meaning.upper()).strip("_")
    if not 0 < len(value) <= 16:
        value = f"{value[:9]}_{hashlib.sha256(meaning.encode()).hexdigest()[:6].upper()}"
    return CodedConcept(value, OWN_SCHEME, meaning[:_LONGEST])


def _save(made: Any, path: StrPath) -> None:
    with replacing(path) as partial:
        made.save_as(partial, enforce_file_format=True)
