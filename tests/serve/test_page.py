"""`axnet serve` as a client sees it: the page, what a film is answered, and who and what is turned away."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import os
import re
import socket
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="axnet serve needs the extra [serve]")
pytest.importorskip("uvicorn", reason="axnet serve needs the extra [serve]")

from harm import abort, dawdle, stop_half_way
from PIL import Image
from serving import FINDINGS, ask, encoded, film, send, serving, small_predictor

from axnet.cli import main
from axnet.data.cardiothoracic import cardiothoracic_lines, cardiothoracic_ratio
from axnet.serve import decoding
from axnet.serve.app import create_app
from axnet.serve.guard import is_loopback
from axnet.serve.limits import Limits
from axnet.serve.server import listen, start_message

PAGE = Path(decoding.__file__).parent / "page"


class Watched:
    """A predictor that notes what it is given, and waits or fails where a test says so."""

    def __init__(self) -> None:
        self.inner = small_predictor()
        self.info = self.inner.info
        self.given: list[weakref.ref[Any]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.began = threading.Event()
        self.error: Exception | None = None

    def predict(self, images: list[Any]) -> Any:
        self.began.set()
        assert self.may_go_on.wait(60)
        self.given.append(weakref.ref(images[0]))
        if self.error is not None:
            raise self.error
        return self.inner.predict(images)


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def port(watched: Watched) -> Iterator[int]:
    with serving(watched, Limits(megabytes=1, megapixels=1, seconds=20, memory=2**29)) as port:
        yield port


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_page_loads_nothing_from_elsewhere(port: int) -> None:
    status, headers, body = ask(port)
    assert status == 200
    assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    files = re.findall(r'(?:src|href)="([^"]+)"', body.decode())
    assert sorted(files) == ["data:,", "page/film.js", "page/page.js", "page/style.css"]
    assert all(ask(port, path=f"/{name}")[0] == 200 for name in files if name.startswith("page/"))
    urls = [url for file in PAGE.iterdir() for url in re.findall(r"https?://[^\"')\s]+", file.read_text())]
    assert urls == ["http://www.w3.org/2000/svg"]  # the name of a namespace
    assert ask(port, path="/page/../app.py")[0] == 404


def test_what_a_film_is_answered(port: int) -> None:
    image = film()
    status, answer = send(port, encoded(image), X_Film_Name="%C3%BCber%20%3Ci%3E.png")
    assert status == 200
    assert answer["name"] == "über <i>.png"
    stretched = np.rint((image - image.min()) * (255 / np.ptp(image).astype(float)))
    np.testing.assert_array_equal(picture(answer["film"]), stretched)
    found = small_predictor().predict([image])[0]
    assert {each["name"]: each["probability"] for each in answer["findings"]} == pytest.approx(found.probabilities)
    assert {e["name"]: e["call"] for e in answer["findings"] if e["call"] is not None} == found.positive
    assert answer["flags"] == list(found.flags)
    assert all(picture(each["map"]).shape == (96, 96, 4) for each in answer["findings"])
    finest, *_, coarsest = (stage.max() for stage in found.prob_maps)  # one map for both findings
    assert [each["peak"] for each in answer["findings"]] == pytest.approx([finest] * 2)
    assert finest != pytest.approx(coarsest)
    assert [organ["name"] for organ in answer["organs"]] == ["left lung", "right lung", "heart"]
    report = answer["report"]
    assert "über &lt;i&gt;.png" in report
    assert "Mass &lt;b&gt;" in report
    assert FINDINGS[1] not in report
    assert all(each["map"] in report for each in answer["findings"])
    assert f"{found.probabilities['Effusion']:.1%}" in report


@pytest.mark.parametrize(
    ("kind", "image"),
    [("JPEG", film(80)), ("PNG", film(80).astype(np.uint16) * 257), ("PNG", film(80)[:1]), ("PNG", film(80)[:, :1])],
)
def test_kinds_and_shapes_of_films(port: int, kind: str, image: np.ndarray) -> None:
    status, answer = send(port, encoded(image, kind))
    assert status == 200
    assert (answer["height"], answer["width"]) == image.shape


def test_the_lines_are_what_the_ratio_compares(port: int) -> None:
    masks = np.zeros((3, 50, 100), bool)
    masks[0, 10:30, 55:90], masks[1, 15:35, 10:45], masks[2, 25:40, 40:70] = True, True, True
    heart, thorax = cardiothoracic_lines(masks)
    assert (heart[:2], thorax[:2]) == ((40, 70), (10, 90))
    assert cardiothoracic_ratio(masks) == 30 / 80
    assert cardiothoracic_lines(np.zeros((3, 8, 8), bool)) is None


def test_no_film_is_kept(port: int, watched: Watched) -> None:
    assert send(port, encoded(film()))[0] == 200
    before = len(watched.given) - 1  # one earlier is the blank film that warms the model
    watched.error = ValueError("no such film")
    status, answer = send(port, encoded(film()), X_Film_Name="one.png")
    assert (status, answer["error"]) == (422, "image file 'one.png' cannot be read (no such film).")
    watched.error = RuntimeError("a fault of ours")
    status, answer = send(port, encoded(film()))
    assert (status, answer["error"]) == (500, "the server failed on this film (RuntimeError).")
    watched.error = None
    assert send(port, encoded(film()))[0] == 200  # and the model still answers
    for _ in range(100):
        gc.collect()
        gone = [kept() is None for kept in watched.given[before:]]
        if all(gone):
            break
        time.sleep(0.05)
    assert gone == [True] * 4


def test_no_film_is_written(port: int) -> None:
    written: list[str] = []
    watching = [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching[0] and event == "open" and isinstance(arguments[0], (str, bytes)):
            mode, flags = arguments[1:]
            if (mode is None and flags & (os.O_WRONLY | os.O_RDWR)) or (mode is not None and set(mode) & set("wax+")):
                written.append(str(arguments[0]))

    sys.addaudithook(watch)  # for good: it can be told to look away, not taken out
    try:
        assert send(port, encoded(film(600)))[0] == 200
        assert send(port, b"no film")[0] == 422
    finally:
        watching[0] = False
    assert written == []


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"", 422, "the request has no body, expected a PNG, JPEG or DICOM file."),
        (b"GIF89a" + bytes(50), 422, "image file 'film' is truncated or not a PNG/JPEG image (it begins as none"),
        (encoded(film())[:300], 422, "is truncated or not a PNG/JPEG image"),
        (encoded(film(), "BMP"), 422, "it begins as none of these"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "it begins as none of these"),
        (bytes(10**6 + 1), 413, "the film has more than 1 MB."),
        (encoded(np.zeros((1200, 1200), np.uint8)), 422, "has 1200 x 1200 pixels, expected at most 1000000"),
    ],
    ids=["empty", "gif", "cut", "bmp", "postscript", "large", "many pixels"],
)
def test_what_is_turned_away(port: int, content: bytes, status: int, sentence: str) -> None:
    got, answer = send(port, content)
    assert got == status
    assert sentence in answer["error"]
    assert "0x" not in answer["error"]


def test_a_deflated_bomb_ends_its_own_process_alone(port: int) -> None:
    pydicom = pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    head = pydicom.filebase.DicomBytesIO()
    head.write(bytes(128) + b"DICM")
    pydicom.filewriter.write_file_meta_info(head, meta, enforce_standard=False)
    packer = zlib.compressobj(1, wbits=-15)
    zeros = bytes(10**7)
    bomb = head.getvalue() + b"".join(packer.compress(zeros) for _ in range(60)) + packer.flush()
    assert len(bomb) < 10**7
    with serving(small_predictor(), Limits(memory=2**29)) as other:
        status, answer = send(other, bomb)
        assert status == 422
        assert answer["error"].startswith("image file 'film' ")
        assert send(other, encoded(film()))[0] == 200


@pytest.mark.parametrize(
    ("decoder", "seconds", "sentence"),
    [
        (abort, 60, "is damaged: its decoder broke off."),
        (dawdle, 2, "took longer than 2 s to decode."),
        (stop_half_way, 2, "took longer than 2 s to decode."),
    ],
)
def test_a_decoder_that_ends_or_hangs(
    monkeypatch: pytest.MonkeyPatch, decoder: Any, seconds: int, sentence: str
) -> None:
    decoding.prepare()
    monkeypatch.setattr(decoding, "_serve_one", decoder)
    with pytest.raises(decoding.FilmError, match=re.escape(sentence)):
        decoding.decode(b"film", "one.png", Limits(seconds=seconds))


def test_it_is_ready_when_it_has_read_a_film() -> None:
    watched, read = Watched(), []
    app = create_app(watched, ready=lambda: read.append(len(watched.given)))

    async def begin() -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(begin())
    assert read == [1]


def test_a_busy_server_says_so(watched: Watched) -> None:
    with serving(watched, Limits(waiting=1)) as port:
        assert ask(port)[0] == 200  # it has begun, and read its blank film
        watched.may_go_on.clear()
        watched.began.clear()
        answers: list[tuple[int, dict[str, Any]]] = []
        waiting = threading.Thread(target=lambda: answers.append(send(port, encoded(film()))))
        waiting.start()
        try:
            assert watched.began.wait(60)
            status, headers, body = ask(port, "POST", "/film", encoded(film()))
            assert (status, headers["retry-after"]) == (503, "2")
            assert json.loads(body)["error"].startswith("the server is busy: it takes 1 film at a time")
            assert ask(port)[0] == 200  # the page is there all the while
        finally:
            watched.may_go_on.set()
            waiting.join(60)
        assert [status for status, _ in answers] == [200]
        assert send(port, encoded(film()))[0] == 200


def test_who_leaves_gives_the_place_back(watched: Watched) -> None:
    with serving(watched, Limits(waiting=1)) as port:
        with socket.create_connection(("127.0.0.1", port)) as left:
            left.sendall(b"POST /film HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf")
        for _ in range(200):
            status, _ = send(port, encoded(film()))
            if status == 200:
                break
        assert status == 200


def test_a_slow_upload_is_ended() -> None:
    with serving(small_predictor(), Limits(seconds=1)) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /film HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf")
        slow.settimeout(60)
        assert b" 408 " in slow.recv(4096)


def test_only_this_machine_and_only_this_page(port: int) -> None:
    for host in ("localhost", f"localhost:{port}", "127.0.0.1", "[::1]:80", "127.0.0.5"):
        assert ask(port, Host=host)[0] == 200
    for host in ("example.org", "localhost.example.org", "10.0.0.1", "", "[::1", "127.0.0.1@example.org"):
        assert ask(port, Host=host)[0] == 403
    status, answer = send(port, encoded(film()), Sec_Fetch_Site="cross-site")
    assert (status, answer["error"]) == (403, "films come from the page of this server, not from another site's.")
    assert send(port, encoded(film()), Sec_Fetch_Site="same-origin")[0] == 200


def test_a_token() -> None:
    with serving(small_predictor(), token="correct horse") as port:
        for path in ("/", "/page/page.js", "/?token=wrong", "/?token=%C3%BC", "/film"):
            status, _, body = ask(port, path=path)
            assert status == 401
            assert b"open the whole address" in body
        assert ask(port, path="/?token=wrong", Host="[::1")[0] == 401
        assert send(port, encoded(film()))[0] == 401
        assert send(port, encoded(film()), Authorization="Bearer wrong")[0] == 401
        assert send(port, encoded(film()), Authorization="Bearer correct horse", Host="example.org")[0] == 200
        status, headers, _ = ask(port, path="/?token=correct%20horse")
        assert (status, headers["location"]) == (303, "/")
        assert "HttpOnly" in headers["set-cookie"]
        assert ask(port, Cookie=headers["set-cookie"].partition(";")[0])[0] == 200


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [is_loopback(h) for h in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "10.1.2.3", "example.org")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip
    with listen("127.0.0.1", 0) as opened:
        number = opened.getsockname()[1]
        assert f"http://127.0.0.1:{number}\n" in start_message("127.0.0.1", opened, None)
        monkeypatch.setattr(socket, "gethostname", lambda: "ward")
        message = start_message("0.0.0.0", opened, "secret-token")
        assert f"http://localhost:{number}/?token=secret-token or http://ward:{number}/?token=secret-token" in message
        assert "not encrypted" in message
        assert "/?token=a%26b%23c%2Bd or " in start_message("0.0.0.0", opened, "a&b#c+d")
        with pytest.raises(ValueError, match=f"--host 127.0.0.1 --port {number} cannot be opened"):
            listen("127.0.0.1", number)
    with pytest.raises(ValueError, match="--host is 'no such host', which is no address here"):
        listen("no such host", 0)
    with pytest.raises(ValueError, match="waiting is 0, expected 1 or more"):
        Limits(waiting=0)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("short", "--token has 5 characters, expected 8 or more."),
        ("schlüsselwort", "--token holds characters that are not printable ASCII, expected these alone."),
        ("two\nlines", "--token holds characters that are not printable ASCII, expected these alone."),
    ],
)
def test_a_token_that_does_not_serve_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str, said: str
) -> None:
    monkeypatch.setattr("sys.argv", ["axnet", "serve", "--token", token])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"axnet: {said}\n"
