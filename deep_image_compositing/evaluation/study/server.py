"""The web server of a study: a page, the pictures of its sets, and a small JSON interface.

Nothing that it sends tells which method made a picture: names are random tokens, the order is
shuffled per person, and the headers carry no file dates. It answers for what ``study.json`` names
and for nothing else, so no path of a request ever reaches the disk. It answers only to names of its
own, and writes only for its own page, so that no other site can use it through somebody's browser.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.evaluation.study.folder import ANSWERS, Study
from deep_image_compositing.evaluation.study.store import Store
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import check_regular
from deep_image_compositing.messages import show

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def serve(
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    intro: str | Path | None = None,
    allowed_hosts: Iterable[str] = (),
    say: Callable[[str], None] = show,
) -> None:
    """Serve a study until the process is told to stop; answers go to ``answers.sqlite``.

    Args:
        folder: what ``study make`` made.
        host: address to listen at; ``0.0.0.0`` for the whole network.
        port: 0 for any free one.
        intro: a text file for the first page in place of our text; paragraphs are parted by
            empty lines.
        allowed_hosts: further names under which people reach it; see ``create_app``.
        say: told the address once the server listens.

    Raises:
        UsageError: no finished study, or an address that cannot be had.
        DataError: pictures or answers that cannot be used.
        MissingExtraError: Starlette or uvicorn is not installed.
    """
    uvicorn = import_extra("uvicorn", "study serve")
    import_extra("starlette", "study serve")
    study = Study.open(folder)
    if not 0 <= port <= 65535:
        raise UsageError(f"a port is a number from 0 to 65535, not {port}")
    text = None if intro is None else _paragraphs(Path(intro))
    with Store(Path(folder) / ANSWERS, study.id) as store, _listen(host, port) as listener:
        app = create_app(study, store, folder, intro=text, allowed_hosts=[host, *allowed_hosts])
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        say(
            f"study at http://{shown}:{listener.getsockname()[1]}/ "
            "(Ctrl-C stops the server; answers are kept)"
        )
        sys.stdout.flush()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # told to stop, which is how it is meant to end
            say(f"stopped; people so far: {len(store.people())}")


def create_app(
    study: Study,
    store: Store,
    folder: str | Path,
    *,
    intro: list[str] | None = None,
    allowed_hosts: Iterable[str] = (),
) -> Starlette:
    """The application: ``serve`` runs it, and so can any other ASGI server, in one process.

    Args:
        study: finished.
        store: of this study.
        folder: where the pictures lie.
        intro: paragraphs of the first page in place of ours.
        allowed_hosts: names under which people reach it, besides addresses, ``localhost`` and the
            machine's own name: that of a web server in front of it, say.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from deep_image_compositing.evaluation.study.api import Api

    api = Api(study, store, folder, intro)

    def failed(request: Request, error: Exception) -> Response:
        status, text = 500, "the answer could not be stored"
        headers = {"cache-control": "no-store"}
        if isinstance(error, HTTPException):
            status, text = error.status_code, error.detail
            headers |= error.headers or {}
        else:
            show(f"error: {error}", file=sys.stderr)
        return JSONResponse({"error": text}, status, headers)

    return Starlette(
        routes=[
            Route("/", api.page),
            Route("/page/{name}", api.page),
            Route("/pictures/{name}", api.picture),
            Route("/api/study", api.about),
            Route("/api/people", api.join, methods=["POST"]),
            Route("/api/leave", api.leave, methods=["POST"]),
            Route("/api/sets/{set}", api.picture_set),
            Route("/api/sets/{set}/draft", api.draft, methods=["PUT"]),
            Route("/api/sets/{set}/answer", api.answer, methods=["PUT"]),
        ],
        middleware=[Middleware(_Headers), Middleware(_OwnNames, names=_own_names(allowed_hosts))],
        exception_handlers={HTTPException: failed, CompositingError: failed, OSError: failed},
    )


class _Headers:
    """Adds to every response what keeps browsers from doing more than the page needs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self.app(scope, receive, send_more)


class _OwnNames:
    """Refuses requests for another host, and writes from pages of another one.

    A page elsewhere can have its own name lead to this machine, and would then read and write in
    the name of whoever looks at it; but the browser says which name it has asked for. It cannot
    be an address.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import Headers
        from starlette.responses import JSONResponse

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        writes = scope.get("method") not in ("GET", "HEAD", "OPTIONS")
        error = ""
        if not self._is_own(host):
            error = "this server has another name; whoever runs it can allow this: --allowed-host"
        elif writes and origin is not None and not self._is_own_page(origin, host):
            error = "this comes from a page of another site"
        app = JSONResponse({"error": error}, 403) if error else self.app
        await app(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        name = _host_name(host)
        try:
            return name in self.names or ipaddress.ip_address(name.strip("[]")) is not None
        except ValueError:
            return False

    def _is_own_page(self, origin: str, host: str) -> bool:
        place = origin.partition("://")[2].lower()
        # A web server in front may pass its requests on under another name, and has no port.
        return place == host.lower() or place in self.names


def _own_names(allowed: Iterable[str]) -> frozenset[str]:
    own = socket.gethostname()
    return frozenset(name.lower() for name in ("localhost", own, f"{own}.local", *allowed) if name)


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; empty where it is none."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(?::\d*)?", host.lower())
    return found[1] if found else ""


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a taken port is known before anything is announced."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; give another "
            "--host or --port"
        ) from error


def _paragraphs(path: Path) -> list[str]:
    check_regular(path, UsageError)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error
    found = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    if not found:
        raise UsageError(f"{path} is empty; it is to tell people what they take part in")
    return found
