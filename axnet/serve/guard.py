"""Who may ask: from this machine anyone, from others who knows the token."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""The page loads nothing from elsewhere, is framed by nobody, and no answer is stored on the way."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host's name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests through to an app that know the token; without a token, those to a loopback address.

    The token comes as `Authorization: Bearer TOKEN`, or as the cookie that `/?token=TOKEN` sets. Pages of other sites,
    which a browser would let post here, get nothing either way.
    """

    def __init__(self, app: App, token: str | None) -> None:
        """The class describes the arguments."""
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        refusal = self._refusal(Request(scope))
        await (self.app if refusal is None else refusal)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and request.method != "GET":
            return _error(403, "films come from the page of this server, not from another site's.")
        if self.token is None:
            if is_loopback(_hostname(request.headers.get("host", ""))):
                return None
            return _error(403, "this server answers on localhost only; --token lets it answer by other names.")
        cookie = f"axnet_{(request.scope.get('server') or ('', 0))[1]}"  # cookies do not tell ports apart
        asked = request.query_params.get("token")
        if asked is not None and request.method == "GET" and request.scope["path"] == "/" and self._right(asked):
            answer = RedirectResponse("/", 303)  # the address bar and the history do not keep it
            answer.set_cookie(cookie, asked, httponly=True, samesite="lax")
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._right(bearer) or self._right(request.cookies.get(cookie, "")):
            return None
        return _error(401, "a token is needed: open the whole address that axnet serve printed.")

    def _right(self, token: str) -> bool:
        return self.token is not None and secrets.compare_digest(token.encode(), self.token.encode())


def _hostname(host: str) -> str:
    """A Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)
