from __future__ import annotations

import numpy as np
import pydicom
import pytest
from radiograph import radiograph

from axnet.data import RadiographFolder, read_image

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300


def write(path, *pixels_and_photometric, **tags):
    radiograph(*(pixels_and_photometric or (RAMP,)), **tags).save_as(path, enforce_file_format=True)
    return path


def test_grey_values_are_stretched_to_the_whole_range(tmp_path):
    image = read_image(write(tmp_path / "x.dcm"))
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, RAMP / 3300, atol=1e-6)


def test_monochrome1_is_inverted(tmp_path):
    np.testing.assert_allclose(
        read_image(write(tmp_path / "x.dcm", photometric="MONOCHROME1")), 1 - RAMP / 3300, atol=1e-6
    )


def test_rescale_comes_before_the_window(tmp_path):
    path = write(
        tmp_path / "x.dcm", RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[2000, 0], WindowWidth=[2001, 1]
    )
    expected = ((RAMP * 2.0 - 1000 - 1999.5) / 2000 + 0.5).clip(0, 1)
    np.testing.assert_allclose(read_image(path), expected, atol=1e-5)


def test_a_voi_lut_is_applied(tmp_path):
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [12, 0, 16]
    lut.add_new("LUTData", "US", list(range(0, 144, 12))[::-1])
    path = write(tmp_path / "x.dcm", (RAMP // 300).astype(np.uint16), VOILUTSequence=[lut])
    np.testing.assert_allclose(read_image(path), 1 - RAMP / 3300, atol=1e-6)


def test_files_are_known_by_their_content_too(tmp_path):
    write(tmp_path / "x.dcm").rename(tmp_path / "IM0001")
    assert read_image(tmp_path / "IM0001").shape == (3, 4)


def test_folders_list_them(tmp_path):
    write(tmp_path / "x.dcm")
    assert RadiographFolder(tmp_path)[0]["image"].shape == (1, 3, 4)


def test_files_that_cannot_serve_are_named(tmp_path):
    colour = write(tmp_path / "c.dcm", np.zeros((3, 4, 3), dtype=np.uint8), "RGB")
    with pytest.raises(ValueError, match=r"c.dcm' holds pixels of shape \[3, 4, 3\] in RGB photometric"):
        read_image(colour)
    cut = write(tmp_path / "t.dcm")
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"t.dcm' cannot be read as DICOM"):
        read_image(cut)
    (tmp_path / "n.dcm").write_bytes(b"no DICOM at all")
    with pytest.raises(ValueError, match=r"n.dcm' cannot be read as DICOM"):
        read_image(tmp_path / "n.dcm")


def test_a_missing_pydicom_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "x.dcm")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pydicom: pip install 'axnet\[dicom\]'"):
        read_image(path)
