"""The web server of a study: its page, its pictures, and its people's choices.

A person is known by a cookie; below ``api/`` everything is JSON:

========================  ==========================================================
``GET study``             number of sets; the person, if known, and how far they are
``POST people``           ``{"name": "..."}``, joins; sets the cookie
``POST leave``            forgets the cookie, so that somebody else can take part
``GET sets/ID``           the pictures of a set in the person's order; their choice
``PUT sets/ID/draft``     ``{"ranking": [TOKEN or null, ...]}``, the choice so far
``PUT sets/ID/answer``    ``{"ranking": [TOKEN, TOKEN, TOKEN]}``, confirmed
========================  ==========================================================

Nothing that is sent tells which method made a picture: names are random tokens, the order is
shuffled per person, and the headers carry no file dates. Served is what ``study.json`` names and
nothing else, so no path of a request ever reaches the disk. Only names of its own are answered to,
and only its own page may write, so that no other site can use it through somebody's browser.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.evaluation.study.folder import (
    ANSWERS,
    MAX_NAME,
    SUFFIX,
    Person,
    PictureSet,
    Store,
    Study,
    picture_path,
)
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import check_regular
from deep_image_compositing.messages import show

MAX_BODY = 4096  # bytes of a request's body; the largest that the page sends has a few hundred

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_YEAR = 365 * 24 * 3600
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
) -> None:
    """Serve a study until the process is told to stop; answers go to ``answers.sqlite``.

    Args:
        folder: what ``study make`` made.
        host: address to listen at; ``0.0.0.0`` for the whole network.
        port: 0 for any free one.
        intro: a text file for the first page; paragraphs are parted by empty lines.
        allowed_hosts: further names under which people reach it; see ``create_app``.

    Raises:
        UsageError: no finished study, or an address that cannot be had.
        DataError: pictures or answers that cannot be used.
        MissingExtraError: uvicorn is not installed.
    """
    uvicorn = import_extra("uvicorn", "study serve")
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
        show(
            f"study at http://{shown}:{listener.getsockname()[1]}/ "
            "(Ctrl-C stops the server; answers are kept)"
        )
        sys.stdout.flush()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # told to stop, which is how it is meant to end
            show(f"stopped; people so far: {len(store.people())}")


def create_app(
    study: Study,
    store: Store,
    folder: str | Path,
    *,
    intro: list[str] | None = None,
    allowed_hosts: Iterable[str] = (),
) -> Starlette:
    """The application: ``serve`` runs it, and so can any other ASGI server, in one process.

    It answers to ``allowed_hosts`` besides addresses, ``localhost`` and the machine's own name.
    """
    api = _Api(study, store, folder, intro)
    return Starlette(
        routes=[
            Route("/", api.page),
            Route("/page/{name}", api.page),
            Route("/pictures/{name}", api.picture),
            Route("/api/study", api.about),
            Route("/api/people", api.join, methods=["POST"]),
            Route("/api/leave", api.leave, methods=["POST"]),
            Route("/api/sets/{set}", api.picture_set),
            Route("/api/sets/{set}/draft", api.save, methods=["PUT"]),
            Route("/api/sets/{set}/answer", api.save, methods=["PUT"]),
        ],
        middleware=[Middleware(_Gate, allowed_hosts)],
        exception_handlers=dict.fromkeys((HTTPException, CompositingError, OSError), _failed),
    )


class _Api:
    """The handlers of one study."""

    def __init__(
        self, study: Study, store: Store, folder: str | Path, intro: list[str] | None
    ) -> None:
        self.study, self.store, self.intro = study, store, intro
        self.sets = {item.id: item for item in study.shown}
        tokens = (token for item in study.shown for token in item.tokens())
        self.pictures = {f"{token}{SUFFIX}": picture_path(folder, token) for token in tokens}
        pages = (files(__package__) / "page").iterdir()
        self.files = {page.name: page.read_bytes() for page in pages}
        self.cookie = f"study-{study.id[:12]}"  # ports share cookies: two studies need two names

    def page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self.files:
            raise HTTPException(404, "there is no such file")
        kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        headers = {"content-type": kind, "cache-control": "no-cache"}
        return Response(self.files[name], headers=headers)

    def picture(self, request: Request) -> Response:
        path = self.pictures.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such picture")
        # Not as a file: its date would tell in which order the methods were rendered.
        headers = {"cache-control": f"private, max-age={_YEAR}, immutable"}
        return Response(path.read_bytes(), media_type="image/webp", headers=headers)

    def about(self, request: Request) -> Response:
        person, known = self._known(request), None
        if person is not None:
            done = {answer.picture_set for answer in self.store.answers(person) if answer.ranking}
            order = self.study.order(person.token)
            sets = [{"id": item.id, "answered": item.id in done} for item in order]
            known = {"name": person.name, "sets": sets}
        counts = {"sets": len(self.sets), "results": len(self.study.methods)}
        return _answer({**counts, "intro": self.intro, "person": known})

    async def join(self, request: Request) -> Response:
        name = (await _body(request)).get("name", "")
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise HTTPException(400, f"a name is text of at most {MAX_NAME} characters")
        person = await run_in_threadpool(self._known, request)
        if person is None:  # a button pressed twice makes one person
            person = await run_in_threadpool(self.store.join, name.strip())
        response = _answer({"name": person.name})
        response.set_cookie(
            self.cookie, person.token, max_age=_YEAR, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    async def leave(self, request: Request) -> Response:
        await _body(request)
        response = _answer({})
        response.delete_cookie(self.cookie, httponly=True, samesite="strict")
        return response

    def picture_set(self, request: Request) -> Response:
        person, item = self._person(request), self._set(request)
        mine = [answer for answer in self.store.answers(person) if answer.picture_set == item.id]
        height, width = item.size
        urls = {token: f"pictures/{token}{SUFFIX}" for token in item.tokens()}
        content = {
            "id": item.id,
            "height": height,
            "width": width,
            "foreground": urls[item.foreground],
            "background": urls[item.background],
            "results": [{"id": token, "url": urls[token]} for token in item.order(person.token)],
            "draft": mine[0].draft if mine else (None, None, None),
            "answered": bool(mine and mine[0].ranking),
        }
        return _answer(content)

    async def save(self, request: Request) -> Response:
        confirmed = request.url.path.endswith("/answer")
        body = await _body(request)
        person, item = await run_in_threadpool(self._person, request), self._set(request)
        try:
            ranking = item.check(body.get("ranking", ()), complete=confirmed)
        except UsageError as error:
            raise HTTPException(400, str(error)) from error
        await run_in_threadpool(self.store.save, person, item.id, ranking, confirmed=confirmed)
        return _answer({})

    def _known(self, request: Request) -> Person | None:
        return self.store.person(request.cookies.get(self.cookie, ""))

    def _person(self, request: Request) -> Person:
        person = self._known(request)
        if person is None:
            raise HTTPException(401, "begin at the first page")
        return person

    def _set(self, request: Request) -> PictureSet:
        item = self.sets.get(request.path_params["set"])
        if item is None:
            raise HTTPException(404, "there is no such set")
        return item


def _answer(content: Any) -> JSONResponse:
    return JSONResponse(content, headers={"cache-control": "no-store"})


def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        show(f"error: {error}", file=sys.stderr)
        error = HTTPException(500, "the answer could not be stored")
    headers = {"cache-control": "no-store", **(error.headers or {})}
    return JSONResponse({"error": error.detail}, error.status_code, headers)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings; no more than ``MAX_BODY`` bytes are read."""
    # Forms of other sites cannot send this type.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected application/json")
    data = b""
    try:
        async for part in request.stream():
            data += part
            if len(data) > MAX_BODY:
                raise HTTPException(413, f"a request has at most {MAX_BODY} bytes")
        content = json.loads(data)
    except ClientDisconnect:  # nobody will read this
        raise HTTPException(400, "the request broke off") from None
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is no JSON") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "the request is no JSON object")
    return content


class _Gate:
    """Adds ``_HEADERS``; refuses requests for another host, and writes from pages of another one.

    A page elsewhere can have its own name lead to this machine, and would then read and write in
    the name of whoever looks at it; but the browser says which name it has asked for. It cannot
    be an address.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        own = socket.gethostname()
        self.app = app
        self.names = {name.lower() for name in ("localhost", own, f"{own}.local", *allowed)} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        origin = headers.get("origin", f"http://{host}")  # only pages of other sites must name it
        writes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        # A web server in front may pass its requests on under another name, and has no port.
        own_pages, app = {host, *self.names}, self.app
        if not self._is_own(host):
            error = "this server has another name; whoever runs it can allow this: --allowed-host"
            app = JSONResponse({"error": error}, 403)
        elif writes and origin.partition("://")[2].lower() not in own_pages:
            app = JSONResponse({"error": "this comes from a page of another site"}, 403)
        await app(scope, receive, send_more)

    def _is_own(self, host: str) -> bool:
        found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(?::\d*)?", host)
        name = found[1] if found else ""
        try:
            return name in self.names or ipaddress.ip_address(name.strip("[]")) is not None
        except ValueError:
            return False


# What it is started with


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
