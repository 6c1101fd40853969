"""`axnet serve`: a page to drop films on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from axnet.cli.options import Device, SegmenterFile

_LEAST_TOKEN = 8


def serve(
    weights: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Classifier written by axnet fit; without it the one that comes with axnet."),
    ] = None,
    segmenter: SegmenterFile = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes one that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on: this machine alone, or 0.0.0.0 for all who reach it.")
    ] = "127.0.0.1",
    token: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            envvar="AXNET_SERVE_TOKEN",
            help="What others must know to be let in; a random one where the host is not this machine alone.",
        ),
    ] = None,
    megabytes: Annotated[int, typer.Option(min=1, help="Largest file of a film.")] = 64,
    megapixels: Annotated[int, typer.Option(min=1, help="Largest film.")] = 40,
    films: Annotated[int, typer.Option(min=1, help="Most films dropped on the page at once.")] = 20,
    waiting: Annotated[
        int, typer.Option(min=1, help="Most films held at a time, of all users; one more is told to come back.")
    ] = 32,
    device: Device = "auto",
) -> None:
    """Serve a page on which chest films are dropped and read: http://localhost:8000.

    PNG, JPEG and DICOM; findings with calibrated probabilities and calls, lungs and heart, cardiothoracic ratio,
    probability maps, a report to download. Everything stays on this machine: the page loads nothing from elsewhere, and
    a film is neither written to disk nor kept after its answer. Only this machine is answered unless --host says
    otherwise. Needs the extras train, dicom (for such films) and serve of axnet. Not for medical use.
    """
    import secrets

    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"axnet serve needs the package '{error.name}': pip install 'axnet[serve]'.") from None
    from axnet.devices import device_of
    from axnet.models import load_classifier
    from axnet.predictor import Predictor, shipped
    from axnet.serve import decoding
    from axnet.serve.app import create_app
    from axnet.serve.guard import is_loopback
    from axnet.serve.limits import Limits
    from axnet.serve.server import listen, server, start_message
    from axnet.train.anatomy import segmenter_of

    if token is not None and len(token) < _LEAST_TOKEN:
        raise ValueError(f"--token has {len(token)} characters, expected {_LEAST_TOKEN} or more.")
    if token is not None and not (token.isascii() and token.isprintable()):  # headers and cookies hold no others
        raise ValueError("--token holds characters that are not printable ASCII, expected these alone.")
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(16)
    place = device_of(device)
    opened = listen(host, port)
    typer.echo("axnet: loading the model")
    decoding.prepare()
    weights = shipped() if weights is None else weights
    model, info = load_classifier(weights)
    predictor = Predictor(model, info, segmenter_of(weights, segmenter)).to(place)
    said = start_message(host, opened, token)
    app = create_app(predictor, Limits(megabytes, megapixels, films, waiting), token, lambda: typer.echo(said))
    server(app).run(sockets=[opened])
