from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ComprehensiveSRStorage,
    SegmentationStorage,
    generate_uid,
)
from radiograph import radiograph
from typer.testing import CliRunner

from axnet.cli import app, reading
from axnet.data.findings import NIH_FINDINGS
from axnet.report.dicom import read_source, write_report, write_segmentation

IDENTITY = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
MASKS = np.zeros((3, 24, 20), dtype=bool)
MASKS[0, 4:18, 12:18] = MASKS[1, 4:16, 2:8] = MASKS[2, 10:20, 7:13] = True


@pytest.fixture(autouse=True)
def _highdicom():
    pytest.importorskip("highdicom", reason="highdicom is not installed (pip install 'axnet[dicom]')")


def film(path, pixels=None, photometric="MONOCHROME2", **tags):
    """A radiograph's file; a tag of None is left out."""
    pixels = np.random.default_rng(0).integers(0, 4000, (24, 20)).astype(np.uint16) if pixels is None else pixels
    data = radiograph(pixels, photometric)
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


FILMS = {
    "bare": {},
    "MONOCHROME1": {"photometric": "MONOCHROME1"},
    "8 bits": {"pixels": np.random.default_rng(0).integers(0, 256, (24, 20)).astype(np.uint8)},
    "odd elements": {"PatientSex": "U", "StudyDate": "2020", "StudyTime": "noon", "PatientBirthDate": "unknown"},
    "whole": {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "Müller^Anna",
        "PatientID": "17",
        "PatientSex": "F",
        "StudyDate": "20200102",
        "StudyTime": "101112",
        "FrameOfReferenceUID": generate_uid(),
    },
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom, where the odd films are written
@pytest.mark.parametrize("kind", FILMS)
def test_organs_and_findings_refer_to_their_film(tmp_path, kind):
    source = pydicom.dcmread(film(tmp_path / "x.dcm", **FILMS[kind]))
    given = read_source(tmp_path / "x.dcm")
    write_segmentation(tmp_path / "x.seg.dcm", given, MASKS)
    write_report(tmp_path / "x.sr.dcm", given, {"Effusion": 0.25, "Pleural_Thickening": 1 / 3}, {"Effusion": True}, 0.5)

    organs = pydicom.dcmread(tmp_path / "x.seg.dcm")
    assert organs.SOPClassUID == SegmentationStorage
    np.testing.assert_array_equal(organs.pixel_array, MASKS)
    types = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in organs.SegmentSequence]
    assert [kind.CodeMeaning for kind in types] == ["Lung", "Lung", "Heart"]
    sides = [kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning for kind in types[:2]]
    assert sides == ["Left", "Right"]
    referred = organs.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == source.SeriesInstanceUID
    assert referred.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID

    report = pydicom.dcmread(tmp_path / "x.sr.dcm")
    assert report.SOPClassUID == ComprehensiveSRStorage
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.StudyInstanceUID == source.StudyInstanceUID
    series = evidence.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID

    for made in (organs, report):
        assert made.StudyInstanceUID == source.StudyInstanceUID
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
        assert made.PatientName == source.get("PatientName", "")
        assert made.PatientSex == ("F" if kind == "whole" else "")
        assert made.StudyDate == ("20200102" if kind == "whole" else "")


def test_a_report_holds_every_number_with_its_finding_and_its_film(tmp_path):
    from highdicom.sr import srread

    source = read_source(film(tmp_path / "x.dcm"))
    probabilities = {name: round(0.05 + 0.06 * i, 2) for i, name in enumerate(NIH_FINDINGS)}
    flag = "the heart covers 45.0% of the image, which is more than any heart that was seen before"
    write_report(tmp_path / "x.sr.dcm", source, probabilities, {"Mass": False, "Hernia": True}, 0.4567, (flag,))
    groups = srread(tmp_path / "x.sr.dcm").content.get_image_measurement_groups()
    values, calls = {}, {}
    for group in groups:
        assert group.source_images[0].referenced_sop_instance_uid == source.SOPInstanceUID
        name = group.tracking_identifier
        values.update((name, measurement.value) for measurement in group.get_measurements())
        calls.update((name, evaluation.value.meaning) for evaluation in group.get_qualitative_evaluations())
    assert values == pytest.approx({**probabilities, "CTR": 0.4567})
    assert calls == {"Mass": "Negative", "Hernia": "Positive", "flags": flag[:64]}
    codes = {group.tracking_identifier: group.finding_type for group in groups}
    assert (codes["Effusion"].scheme_designator, codes["Effusion"].value) == ("SCT", "60046008")
    assert codes["Pleural_Thickening"].scheme_designator == "99AXNET"
    own = [code.value for code in codes.values() if code.scheme_designator == "99AXNET"]
    assert len(set(own)) == len(own)


def test_an_organ_that_is_not_there_has_no_segment(tmp_path):
    source = read_source(film(tmp_path / "x.dcm"))
    masks = MASKS.copy()
    masks[1] = False
    write_segmentation(tmp_path / "x.seg.dcm", source, masks)
    assert [s.SegmentLabel for s in pydicom.dcmread(tmp_path / "x.seg.dcm").SegmentSequence] == ["left lung", "heart"]
    with pytest.raises(ValueError, match="masks is empty, expected at least one organ"):
        write_segmentation(tmp_path / "x.seg.dcm", source, masks & False)
    with pytest.raises(ValueError, match=r"masks has shape \[3, 20, 24\], expected \[3, 24, 20\] of the film"):
        write_segmentation(tmp_path / "x.seg.dcm", source, masks.transpose(0, 2, 1))


@pytest.mark.parametrize("name", IDENTITY)
def test_a_film_without_identity_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"x.dcm' has no {name}, so no DICOM object can refer to it"):
        read_source(film(tmp_path / "x.dcm", **{name: None}))


@pytest.mark.parametrize(
    "odd",
    [{"ImagePositionPatient": [0, 0, 0], "FrameOfReferenceUID": "1.2.3"}, {"SOPClassUID": "1.2.3.4"}],
    ids=["place without size", "another class"],
)
def test_a_film_that_highdicom_does_not_take_is_one_sentence(tmp_path, odd):
    source = read_source(film(tmp_path / "x.dcm", **odd))
    with pytest.raises(ValueError, match=r"x.dcm': no DICOM object can refer to it \("):
        write_segmentation(tmp_path / "x.seg.dcm", source, MASKS)
    assert not (tmp_path / "x.seg.dcm").exists()


def test_names_in_any_character_set_are_kept(tmp_path):
    name = "Yamada^Tarou=山田^太郎"
    film(tmp_path / "x.dcm", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    source = read_source(tmp_path / "x.dcm")
    write_segmentation(tmp_path / "x.seg.dcm", source, MASKS)
    write_report(tmp_path / "x.sr.dcm", source, {"Mass": 0.5}, {})
    for made in ("x.seg.dcm", "x.sr.dcm"):
        assert pydicom.dcmread(tmp_path / made).PatientName == name


def test_a_missing_highdicom_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ModuleNotFoundError, match=r"written by highdicom: pip install 'axnet\[dicom\]'"):
        read_source(film(tmp_path / "x.dcm"))


def test_the_commands_write_objects_beside_their_results(tmp_path):
    """Of three films, one is no DICOM and one has several frames."""
    from PIL import Image

    films = tmp_path / "films"
    films.mkdir()
    (films / "sub").mkdir()
    grey = np.random.default_rng(0).integers(0, 4000, (64, 60)).astype(np.uint16)
    film(films / "sub" / "x.dcm", grey)
    film(films / "two.dcm", np.stack([grey, grey]))
    Image.fromarray(np.zeros((64, 60), np.uint8)).save(films / "y.png")
    table = tmp_path / "table.csv"
    asked = ["predict", str(films), "--dicom-out", str(tmp_path / "out"), "--out", str(table)]
    run = CliRunner().invoke(app, asked)
    assert run.exit_code == 1
    assert "2 images scored, 2 failed" in run.output
    assert len(table.read_text().splitlines()) == 3
    assert "two.dcm' holds pixels of shape [2, 64, 60]" in run.output
    assert "y.png' is not DICOM, expected a film that a DICOM object can refer to." in run.output
    written = [str(p.relative_to(tmp_path / "out")) for p in sorted((tmp_path / "out").rglob("*.dcm"))]
    assert "sub/x.dcm.sr.dcm" in written
    assert set(written) <= {"sub/x.dcm.sr.dcm", "sub/x.dcm.seg.dcm"}


def test_segment_predict_writes_segmentations(tmp_path, monkeypatch):
    from axnet.segment import Anatomy, Segmenter

    found = Anatomy(MASKS, 0.5, 0.9, ())
    monkeypatch.setattr(Segmenter, "predict", lambda self, images, **settings: [found] * len(images))
    film(tmp_path / "x.dcm")
    film(tmp_path / "z.dcm", SOPInstanceUID=None)
    command = ["segment", "predict", str(tmp_path / "x.dcm"), str(tmp_path / "z.dcm"), "--out", str(tmp_path / "a")]
    asked = [*command, "--dicom-out", str(tmp_path / "out")]
    run = CliRunner().invoke(app, asked)
    assert run.exit_code == 1
    assert "z.dcm' has no SOPInstanceUID" in run.output
    assert "1 drawn (0 flagged), 0 were there, 1 failed" in run.output
    place = next((tmp_path / "out").rglob("*.dcm"))
    np.testing.assert_array_equal(pydicom.dcmread(place).pixel_array, MASKS)
    assert "1 were there" in CliRunner().invoke(app, asked).output
    place.unlink()
    refused = CliRunner().invoke(app, asked)
    assert "whose DICOM object is not in --dicom-out: give another --out" in str(refused.exception)


def test_a_film_without_organs_gets_a_report_alone(tmp_path, monkeypatch):
    from axnet.predictor import Prediction
    from axnet.segment import Anatomy

    film(tmp_path / "x.dcm")
    anatomy = Anatomy(MASKS & False, float("nan"), 0.0, ("heart covers 0.0% of the image",))
    reading.write_dicom(
        tmp_path / "x", Path(tmp_path / "x.dcm"), anatomy, Prediction({"Mass": 0.1}, {}, (), anatomy, anatomy.flags)
    )
    assert [p.name for p in sorted(tmp_path.glob("x.s*"))] == ["x.sr.dcm"]
