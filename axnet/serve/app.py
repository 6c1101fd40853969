"""The page and its one question: what is on this film?"""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import anyio
from jinja2 import Environment
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import axnet
from axnet.report.pictures import map_colours
from axnet.serve.decoding import FilmError
from axnet.serve.guard import Guard
from axnet.serve.limits import Limits
from axnet.serve.reading import BusyError, GoneError, Reading

if TYPE_CHECKING:
    from axnet.predictor import Predictor

PAGE = Path(__file__).parent / "page"
NAME_HEADER = "X-Film-Name"
"""What the film is called, percent-encoded; errors and the report say it."""

_LOG = logging.getLogger("uvicorn.error")
_LONGEST_NAME = 200
_AGAIN = 2  # seconds after which a page asks a busy server again


def create_app(
    predictor: Predictor,
    limits: Limits | None = None,
    token: str | None = None,
    ready: Callable[[], None] | None = None,
) -> Starlette:
    """The ASGI application: GET / is the page, POST /film a film's file as the body, answered as JSON.

    token: what a request must bring; None lets every request to a loopback address through. ready: called when the
    first film, a blank one, has been read. An error is JSON too, {"error": a sentence}: 401 and 403 who may not ask,
    408 a slow upload, 413 a large file, 422 a film that cannot be read, 500 one that the server failed on, 503 with
    Retry-After a busy server.
    """
    limits = Limits() if limits is None else limits
    reading = Reading(predictor, limits)
    template = Environment(autoescape=True).from_string((PAGE / "index.html").read_text(encoding="utf-8"))
    page = template.render(
        limits=limits,
        version=axnet.__version__,
        calibrated=predictor.info.calibration is not None,
        colours=map_colours(),
    )

    async def index(request: Request) -> Response:
        return HTMLResponse(page)

    async def film(request: Request) -> Response:
        try:
            with reading.place():
                content = [await _body(request, limits)]
                if not content[0]:
                    raise FilmError("the request has no body, expected a PNG, JPEG or DICOM file.")
                return JSONResponse(await reading.read(content, _name(request), request.is_disconnected))
        except BusyError:
            many = f"{limits.waiting} film{'s' if limits.waiting > 1 else ''} at a time"
            sentence = f"the server is busy: it takes {many}, try again soon."
            raise HTTPException(503, sentence, {"Retry-After": str(_AGAIN)}) from None
        except FilmError as error:
            raise HTTPException(422, str(error)) from None
        except (GoneError, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it
        except HTTPException:
            raise
        except Exception as error:
            _LOG.error("".join(traceback.format_exception(error)))  # as text: the error itself holds the film
            sentence = f"the server failed on this film ({type(error).__name__})."
            raise HTTPException(500, sentence) from None

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await reading.warm()
        if ready is not None:
            ready()
        try:
            yield
        finally:
            reading.close()

    return Starlette(
        routes=[
            Route("/", index),
            Route("/film", film, methods=["POST"]),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={HTTPException: _told},
        lifespan=lifespan,
    )


async def _body(request: Request, limits: Limits) -> bytes:
    """The file, never more of it in memory than is allowed; what is sent beyond that is read and dropped for a while,

    because a browser shows an answer only after it could send all.
    """
    too_large = f"the film has more than {limits.megabytes} MB."
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size <= limits.size:
                    parts.append(part)
                else:
                    parts.clear()
                    if size > 4 * limits.size:
                        break
    except TimeoutError:
        if size <= limits.size:
            raise HTTPException(408, f"the film took longer than {limits.seconds} s to arrive.") from None
    if size > limits.size:
        raise HTTPException(413, too_large)
    return b"".join(parts)


def _name(request: Request) -> str:
    given = unquote(request.headers.get(NAME_HEADER, "")).replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in given if c.isprintable())[-_LONGEST_NAME:] or "film"


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
