"""The web application of a study: its page, its pictures, and its people's choices.

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
``server`` runs it.
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
from deep_image_compositing.evaluation.study.folder import SUFFIX, PictureSet, Study, picture_path
from deep_image_compositing.evaluation.study.store import MAX_NAME, Person, Store
from deep_image_compositing.messages import show

MAX_BODY = 4096
"""Bytes of a request's body; the largest that the page sends has a few hundred."""

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
            Route("/api/sets/{set}/{kind:str}", api.save, methods=["PUT"]),
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
        content: dict[str, Any] = {"sets": len(self.sets), "results": len(self.study.methods)}
        content |= {"intro": self.intro, "person": None}
        if (person := self._known(request)) is not None:
            done = {answer.picture_set for answer in self.store.answers(person) if answer.ranking}
            order = self.study.order(person.token)
            sets = [{"id": item.id, "answered": item.id in done} for item in order]
            content["person"] = {"name": person.name, "sets": sets}
        return _answer(content)

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
        return _answer(
            {
                "id": item.id,
                "height": height,
                "width": width,
                "foreground": f"pictures/{item.foreground}{SUFFIX}",
                "background": f"pictures/{item.background}{SUFFIX}",
                "results": [
                    {"id": token, "url": f"pictures/{token}{SUFFIX}"}
                    for token in item.order(person.token)
                ],
                "draft": mine[0].draft if mine else (None, None, None),
                "answered": bool(mine and mine[0].ranking),
            }
        )

    async def save(self, request: Request) -> Response:
        saves = {"draft": self.store.save_draft, "answer": self.store.save_answer}
        kind = request.path_params["kind"]
        if kind not in saves:
            raise HTTPException(404, "there is no such choice")
        body = await _body(request)
        person, item = await run_in_threadpool(self._person, request), self._set(request)
        try:
            ranking = item.check(body.get("ranking", ()), complete=kind == "answer")
        except UsageError as error:
            raise HTTPException(400, str(error)) from error
        await run_in_threadpool(saves[kind], person, item.id, ranking)
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
    status, text = 500, "the answer could not be stored"
    headers = {"cache-control": "no-store"}
    if isinstance(error, HTTPException):
        status, text = error.status_code, error.detail
        headers |= error.headers or {}
    else:
        show(f"error: {error}", file=sys.stderr)
    return JSONResponse({"error": text}, status, headers)


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
