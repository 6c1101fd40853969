"""A hundred random and mutated files end neither the server nor its model."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from radiograph import radiograph

pytest.importorskip("starlette", reason="axnet serve needs the extra [serve]")
pytest.importorskip("uvicorn", reason="axnet serve needs the extra [serve]")

from serving import encoded, film, send, serving, small_predictor

from axnet.serve.limits import Limits

FILES = 100


def dicom(image: np.ndarray, syntax: str) -> bytes:
    """A DICOM film: native, in runs, or with a JPEG or JPEG 2000 inside."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    data = radiograph(image, "MONOCHROME1", WindowCenter=120, WindowWidth=200)
    name = {"native": "ExplicitVRLittleEndian", "runs": "ExplicitVRLittleEndian", "jpeg": "JPEGBaseline8Bit"}
    data.file_meta.TransferSyntaxUID = UID(getattr(pydicom.uid, name.get(syntax, "JPEG2000Lossless")))
    inside = {"jpeg": "JPEG", "jpeg2000": "JPEG2000"}.get(syntax)
    if inside is None:
        data.PixelData = image.tobytes()
    else:
        data.PixelData = encapsulate([encoded(image, inside)])
    data["PixelData"].VR = "OB"
    if syntax == "runs":
        data.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=False, implicit_vr=False, little_endian=True)
    return stream.getvalue()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bits turned, mostly where a file says what it is; parts cut, doubled or filled."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 20))):
        start = chance.randrange(min(len(data), chance.choice((400, len(data)))))
        length = chance.choice((1, 1, 2, 8, 100))
        match chance.randrange(5):
            case 0:
                data[start : start + length] = chance.randbytes(length)
            case 1:
                data[start] ^= 1 << chance.randrange(8)
            case 2:
                data[start : start + length] = bytes([chance.choice((0, 255))]) * length
            case 3:
                data[start:start] = data[start : start + length]
            case 4 if chance.random() < 0.2:
                del data[start:]
        if not data:
            return b"\0"
    return bytes(data)


def test_a_hundred_files_that_are_none() -> None:
    chance = random.Random(17)
    image = film(48)
    whole = [
        encoded(image),
        encoded(image.astype(np.uint16) * 200),
        encoded(image, "JPEG"),
        encoded(image, "JPEG", progressive=True),
    ]
    pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")
    whole += [dicom(image, syntax) for syntax in ("native", "runs", "jpeg", "jpeg2000")]
    outcomes = {200: 0, 422: 0}
    with serving(small_predictor(), Limits(megabytes=1, megapixels=1, seconds=30, memory=2**29)) as port:
        for content in whole:
            assert send(port, content)[0] == 200  # each is a film before it is spoilt
        for index in range(FILES):
            content = (
                chance.randbytes(chance.randrange(1, 3000)) if index % 10 == 0 else mutated(whole[index % 8], chance)
            )
            status, answer = send(port, content, X_Film_Name=chance.choice(("film", "film.dcm", "film.png")))
            outcomes[status] += 1
            if status == 422:
                assert answer["error"].startswith("image file 'film")
                assert answer["error"].endswith(".")
            else:
                assert np.isfinite([each["probability"] for each in answer["findings"]]).all()
        assert send(port, whole[0])[0] == 200
    assert sum(outcomes.values()) == FILES
    assert min(outcomes.values()) > 10  # some can still be read
