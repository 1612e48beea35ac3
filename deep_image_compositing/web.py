"""What both web servers share: where they listen, and whom they answer.

A page elsewhere can have its own name lead to this machine, and would then read and write in the
name of whoever looks at it; but the browser says which name it has asked for, and no address.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deep_image_compositing.errors import UsageError

COOKIE = "deep-image-compositing"

OPEN = ("/health",)
"""Paths that are answered without a token: whoever watches over a server has none."""

_YEAR = 365 * 24 * 3600
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer that does not set them otherwise."""


class Gate:
    """Middleware that answers to its own names, writes for its own pages, and asks for the token.

    ``names`` are further ones than addresses, ``localhost`` and the machine's own; ``refuse`` makes
    an answer of a status and a sentence. The token comes as ``Authorization: Bearer TOKEN``, or as
    ``?token=TOKEN`` once, which becomes a cookie; None is for whoever comes.
    """

    def __init__(
        self, app: ASGIApp, names: Iterable[str], refuse: Callable[..., Response],
        token: str | None = None,
    ) -> None:  # fmt: skip
        own = socket.gethostname()
        self.app, self.refuse, self.token = app, refuse, token
        known = {name.lower() for name in ("localhost", own, f"{own}.local", *names)}
        # Pages name their port, and proxies may drop it from the host.
        self.names = (known | set(map(bare, known))) - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "http":
            await (self._refusal(scope) or self.app)(scope, receive, send_more)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is not let through."""
        asked = HTTPConnection(scope)
        host = asked.headers.get("host", "").lower()
        if not is_own(host, self.names):
            error = "this server has another name; it can be allowed: --allowed-host"
            return self.refuse(403, error)
        origin = asked.headers.get("origin", f"http://{host}")  # only browsers name it
        writes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if writes and origin.partition("://")[2].lower() not in {host, *self.names}:
            return self.refuse(403, "this comes from a page of another site")
        if self.token is None or scope["path"] in OPEN:
            return None
        offered = asked.query_params.get("token", "")
        if not writes and offered and self._is_token(offered):
            # So that it stays in no list of visited pages. A proxy may have the page in a folder.
            answer = RedirectResponse("../" * (scope["path"].count("/") - 1) or "./", 303)
            secure = scope["scheme"] == "https"
            answer.set_cookie(COOKIE, offered, _YEAR, httponly=True, samesite="lax", secure=secure)
            return answer
        kind, _, bearer = asked.headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else None
        if any(one and self._is_token(one) for one in (given, asked.cookies.get(COOKIE))):
            return None
        error = "a token is needed: Authorization: Bearer TOKEN, or open the page with ?token=TOKEN"
        return self.refuse(401, error, {"www-authenticate": "Bearer"})

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode())


def is_own(host: str, names: Iterable[str]) -> bool:
    """Whether ``host``, as a request names it, is an address or one of ``names``."""
    name = bare(host)
    try:
        return name in names or ipaddress.ip_address(name.strip("[]")) is not None
    except ValueError:
        return False


def bare(host: str) -> str:
    """A host without its port and closing dot; empty for what is none."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(?::\d*)?", host)
    return found[1] if found else ""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything slow; ``UsageError`` if the address cannot be had."""
    if not 0 <= port <= 65535:
        raise UsageError(f"a port is a number from 0 to 65535, not {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # the latter of what can be no name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot listen at {host} port {port}: {reason}; give another --host or --port"
        ) from error
