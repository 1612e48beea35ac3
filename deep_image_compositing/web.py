"""Listening and access control, shared by both web servers.

A page of another site can resolve its own host name to this server (DNS rebinding) and would then
act on the visitor's behalf. Checking the ``Host`` header prevents this.
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

from deep_image_compositing.errors import UsageError, reason_of

COOKIE = "deep-image-compositing"

OPEN = ("/health",)
"""Paths that need no token, for monitoring."""

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
"""Default headers of every response."""


class Gate:
    """Middleware that checks the host, the origin of writing requests, and an access token.

    Args:
        app: the application to protect.
        names: allowed hosts besides IP addresses, ``localhost`` and the machine's own name.
        refuse: creates a response from a status, a message and optional headers.
        token: expected in ``Authorization: Bearer TOKEN``, or once in ``?token=TOKEN``, which sets
            a cookie. None allows access without a token.
    """

    def __init__(
        self, app: ASGIApp, names: Iterable[str], refuse: Callable[..., Response],
        token: str | None = None,
    ) -> None:  # fmt: skip
        machine = socket.gethostname()
        self.app, self.refuse, self.token = app, refuse, token
        allowed = {name.lower() for name in ("localhost", machine, f"{machine}.local", *names)}
        # Origins include the port, which proxies may drop from the host.
        self.names = (allowed | set(map(_host_name, allowed))) - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "http":
            await (self._refusal(scope) or self.app)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        """The response to a request that is not passed on to the application."""
        request = HTTPConnection(scope)
        host = request.headers.get("host", "").lower()
        if not is_allowed(host, self.names):
            error = "this host name is not allowed; allow it with --allowed-host"
            return self.refuse(403, error)
        origin = request.headers.get("origin", f"http://{host}")  # only browsers send it
        writes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if writes and origin.partition("://")[2].lower() not in {host, *self.names}:
            return self.refuse(403, "this request comes from a page of another site")
        if self.token is None or scope["path"] in OPEN:
            return None
        token = request.query_params.get("token", "")
        if not writes and token and self._is_token(token):
            # Keep the token out of the browser's history. The URL is relative because a proxy may
            # serve the page from a subfolder.
            response = RedirectResponse("../" * (scope["path"].count("/") - 1) or "./", 303)
            secure = scope["scheme"] == "https"
            response.set_cookie(COOKIE, token, _YEAR, httponly=True, samesite="lax", secure=secure)
            return response
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        bearer = credentials.strip() if scheme.lower() == "bearer" else None
        if any(t and self._is_token(t) for t in (bearer, request.cookies.get(COOKIE))):
            return None
        error = "a token is needed: Authorization: Bearer TOKEN, or open the page with ?token=TOKEN"
        return self.refuse(401, error, {"www-authenticate": "Bearer"})

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self.token or "").encode())


def is_allowed(host: str, names: Iterable[str]) -> bool:
    """Whether the ``Host`` header ``host`` is an IP address or one of ``names``."""
    name = _host_name(host)
    try:
        return name in names or ipaddress.ip_address(name.strip("[]")) is not None
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """``host`` without its port and trailing dot; empty if it is invalid."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(?::\d*)?", host)
    return match[1] if match else ""


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; raises ``UsageError`` if the address is unavailable."""
    if not 0 <= port <= 65535:
        raise UsageError(f"a port is a number from 0 to 65535, not {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        reason = reason_of(error)
        raise UsageError(
            f"cannot listen at {host} port {port}: {reason}; give another --host or --port"
        ) from error
