"""Run the page: a socket, its address for a person, uvicorn."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

from axnet.serve.guard import is_loopback

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

_CONNECTIONS = 512  # open at a time; one more is answered 503
_LEAVING = 5  # seconds that films under way get when the server is stopped


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free. Raises ValueError where the address is not to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host is '{host}', which is no address here ({error.strerror}).") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise ValueError(
            f"--host {host} --port {port} cannot be opened ({error.strerror}): another program may have it; --port 0 "
            "takes a free one."
        ) from error
    return opened


def addresses(host: str, opened: socket.socket, token: str | None) -> list[str]:
    """What to type into a browser, for this machine and, where the server is open to others, for them."""
    port = opened.getsockname()[1]
    everywhere = host in ("0.0.0.0", "::", "")
    hosts = ["localhost", socket.gethostname()] if everywhere else [host]
    ask = "" if token is None else f"/?token={quote(token, safe='')}"
    return [f"http://{f'[{name}]' if ':' in name else name}:{port}{ask}" for name in hosts]


def start_message(host: str, opened: socket.socket, token: str | None) -> str:
    """What a person reads when the server is ready."""
    lines = [f"axnet serves films on {' or '.join(addresses(host, opened, token))}"]
    lines.append("Open it in a browser and drop films on the page; Ctrl-C ends the server. Not a medical device.")
    if not is_loopback(host):
        lines.append(
            "Others reach it too: whoever has the token may read films. The connection is not encrypted: over a "
            "network that you do not trust, use an SSH tunnel or a proxy with TLS."
        )
    return "\n".join(lines)


def server(app: Starlette) -> uvicorn.Server:
    """What runs an app: .run(sockets=[listen(...)])."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_LEAVING,
    )
    return uvicorn.Server(config)
