"""Who is answered: hosts, origins and tokens are checked here, and nothing else is let through.

A page elsewhere can have its own name lead to this machine, and would then read and write in the
name of whoever looks at it; but the browser says which name it has asked for. It cannot be an
address.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from http.cookies import SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "deep-image-compositing"

OPEN = ("/health",)
"""Paths that are answered without a token: whoever watches over a server has none."""

_YEAR = 365 * 24 * 3600
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Gate:
    """Middleware that answers to its own names, writes for its own pages, and asks for the token.

    Args:
        app: what is behind it.
        names: under which it is reached, besides addresses, ``localhost`` and the machine's own.
        token: as ``Authorization: Bearer TOKEN``, or ``?token=TOKEN`` once, which becomes a
            cookie; None for whoever comes.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = (), token: str | None = None) -> None:
        own = socket.gethostname()
        self.app = app
        self.names = {name.lower() for name in ("localhost", own, f"{own}.local", *names)} - {""}
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        if scope["type"] == "http":
            await (self._refusal(scope) or self.app)(scope, receive, send_more)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is not let through."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if not is_own(host, self.names):
            return refuse(403, "this server has another name; it can be allowed: --allowed-host")
        origin = headers.get("origin", f"http://{host}")  # only browsers name it
        writes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if writes and origin.partition("://")[2].lower() not in {host, *self.names}:
            return refuse(403, "this comes from a page of another site")
        if self.token is None or scope["path"] in OPEN:
            return None
        offered = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not writes and offered and self._is_token(offered):
            answer = RedirectResponse("/", 303)  # so that it stays in no list of visited pages
            answer.set_cookie(COOKIE, offered, max_age=_YEAR, httponly=True, samesite="lax")
            return answer
        cookies = SimpleCookie(headers.get("cookie", ""))
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer.strip()] if kind.lower() == "bearer" else []
        given += [cookies[COOKIE].value] if COOKIE in cookies else []
        if any(map(self._is_token, given)):
            return None
        error = "a token is needed: Authorization: Bearer TOKEN, or open the page with ?token=TOKEN"
        return refuse(401, error, {"www-authenticate": "Bearer"})

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode())


def refuse(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one form in which errors are told: ``{"error": "a sentence"}``."""
    return JSONResponse({"error": error}, status, {"cache-control": "no-store", **(headers or {})})


def is_own(host: str, names: Iterable[str]) -> bool:
    """Whether ``host``, as a request names it, is an address or one of ``names``."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(?::\d*)?", host)
    name = found[1] if found else ""
    try:
        return name in names or ipaddress.ip_address(name.strip("[]")) is not None
    except ValueError:
        return False
