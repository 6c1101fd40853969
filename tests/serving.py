"""A server in a thread of the tests, and what is sent to it."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from axnet.data import PhantomXray
from axnet.models import AnatomyXNet, Calibration, ClassifierInfo, Preprocessing
from axnet.predictor import Predictor
from axnet.segment import Segmenter
from axnet.segment.segmenter import PRESETS
from axnet.serve import decoding
from axnet.serve.app import create_app
from axnet.serve.limits import Limits
from axnet.serve.server import listen, server

FINDINGS = ("Effusion", "Mass <b>")  # the page shows names, it does not run them


def small_predictor() -> Predictor:
    """All that a real one does, in milliseconds; its weights are random."""
    torch.manual_seed(0)
    calibration = Calibration(2.0, (0.5, None), (0.5, None), (0.5, None), (500.0, None), "by hand", "none")
    info = ClassifierInfo("anatomy-xnet", {}, FINDINGS, Preprocessing(size=32, mean=0.5, std=0.5), {}, calibration)
    return Predictor(AnatomyXNet(2, backbone="tiny"), info, Segmenter(PRESETS["tiny"]).eval())


@contextmanager
def serving(predictor: Any, limits: Limits | None = None, token: str | None = None) -> Iterator[int]:
    """The port of a server, while it runs."""
    decoding.prepare()
    opened = listen("127.0.0.1", 0)
    runner = server(create_app(predictor, limits, token))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    try:
        yield opened.getsockname()[1]
        assert thread.is_alive()
    finally:
        runner.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def ask(
    port: int, method: str = "GET", path: str = "/", body: Any = None, timeout: float = 120, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def send(port: int, content: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and answer for one film."""
    status, _, body = ask(port, "POST", "/film", content, **headers)
    return status, json.loads(body)


def film(side: int = 64, seed: int = 1) -> np.ndarray:
    """A phantom's film, uint8."""
    return np.rint(PhantomXray(1, seed=seed, size=side)[0]["image"][0].numpy() * 255).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """A file's content."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()
