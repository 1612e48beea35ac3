"""The web server of a study: a page, the pictures of its sets, and a small JSON interface.

Nothing that it sends tells which method made a picture: names are random tokens, the order is
shuffled per person, and the headers carry no file dates. It answers for what ``study.json`` names
and for nothing else, so no path of a request ever reaches the disk. It answers only to names of its
own, and writes only for its own page, so that no other site can use it through somebody's browser.

Interface, below ``api/``; a person is known by a cookie:

========================  ==========================================================
``GET study``             number of sets; the person, if known, and how far they are
``POST people``           ``{"name": "..."}``, joins; sets the cookie
``POST leave``            forgets the cookie, so that somebody else can take part
``GET sets/ID``           the pictures of a set in the person's order; their choice
``PUT sets/ID/draft``     ``{"ranking": [TOKEN or null, ...]}``, the choice so far
``PUT sets/ID/answer``    ``{"ranking": [TOKEN, TOKEN, TOKEN]}``, confirmed
========================  ==========================================================
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import sys
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.evaluation.study.folder import (
    ANSWERS,
    SUFFIX,
    PictureSet,
    Study,
    picture_path,
)
from deep_image_compositing.evaluation.study.store import MAX_NAME, Person, Store
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import check_regular
from deep_image_compositing.messages import show

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 4096
"""Bytes of a request's body; the largest that the page sends has a few hundred."""

_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "study.js": "text/javascript; charset=utf-8",
    "study.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
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
_YEAR = 365 * 24 * 3600


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
        allowed_hosts: further names under which people reach it; see :func:`create_app`.
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
    """The application: :func:`serve` runs it, and so can any other ASGI server, in one process.

    Args:
        study: finished.
        store: of this study.
        folder: where the pictures lie.
        intro: paragraphs of the first page in place of ours.
        allowed_hosts: names under which people reach it, besides addresses, ``localhost`` and the
            machine's own name: that of a web server in front of it, say.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    sets = {item.id: item for item in study.shown}
    pictures = {
        f"{token}{SUFFIX}": picture_path(folder, token)
        for item in study.shown
        for token in item.tokens()
    }
    page = {name: (files(__package__) / "page" / name).read_bytes() for name in _PAGE}
    cookie = f"study-{study.id[:12]}"  # ports share cookies, so two studies need two names

    def known(request: Request) -> Person:
        person = store.person(request.cookies.get(cookie, ""))
        if person is None:
            raise HTTPException(401, "begin at the first page")
        return person

    def chosen_set(request: Request) -> PictureSet:
        found = sets.get(request.path_params["set"])
        if found is None:
            raise HTTPException(404, "there is no such set")
        return found

    def answer_json(content: Any) -> Response:
        return JSONResponse(content, headers={"cache-control": "no-store"})

    def send_page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in page:
            raise HTTPException(404, "there is no such file")
        return Response(
            page[name], headers={"content-type": _PAGE[name], "cache-control": "no-cache"}
        )

    def send_picture(request: Request) -> Response:
        path = pictures.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such picture")
        # Not as a file: its date would tell in which order the methods were rendered.
        headers = {"cache-control": f"private, max-age={_YEAR}, immutable"}
        return Response(path.read_bytes(), media_type="image/webp", headers=headers)

    def send_study(request: Request) -> Response:
        person = store.person(request.cookies.get(cookie, ""))
        content: dict[str, Any] = {
            "sets": len(sets), "results": len(study.methods), "intro": intro, "person": None,
        }  # fmt: skip
        if person is not None:
            done = {answer.picture_set for answer in store.answers(person) if answer.ranking}
            content["person"] = {
                "name": person.name,
                "sets": [
                    {"id": item.id, "answered": item.id in done}
                    for item in study.order(person.token)
                ],
            }
        return answer_json(content)

    async def join(request: Request) -> Response:
        body = await _body(request)
        name = body.get("name", "")
        if not isinstance(name, str) or len(name) > MAX_NAME or not (name.isprintable()):
            raise HTTPException(400, f"a name is text of at most {MAX_NAME} characters")
        token = request.cookies.get(cookie, "")
        person = await run_in_threadpool(store.person, token)
        if person is None:  # a button pressed twice makes one person
            person = await run_in_threadpool(store.join, name.strip())
        response = answer_json({"name": person.name})
        response.set_cookie(
            cookie, person.token, max_age=_YEAR, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    async def leave(request: Request) -> Response:
        await _body(request)
        response = answer_json({})
        response.delete_cookie(cookie, httponly=True, samesite="strict")
        return response

    def send_set(request: Request) -> Response:
        person, item = known(request), chosen_set(request)
        mine = [answer for answer in store.answers(person) if answer.picture_set == item.id]
        free = (None, None, None)
        return answer_json(
            {
                "id": item.id,
                "height": item.size[0],
                "width": item.size[1],
                "foreground": f"pictures/{item.foreground}{SUFFIX}",
                "background": f"pictures/{item.background}{SUFFIX}",
                "results": [
                    {"id": token, "url": f"pictures/{token}{SUFFIX}"}
                    for token in item.order(person.token)
                ],
                "draft": mine[0].draft if mine else free,
                "answered": bool(mine and mine[0].ranking),
            }
        )

    def save(complete: bool) -> Callable[[Request], Any]:
        async def save_ranking(request: Request) -> Response:
            body = await _body(request)
            person, item = await run_in_threadpool(known, request), chosen_set(request)
            try:
                ranking = item.check(body.get("ranking", ()), complete=complete)
            except UsageError as error:
                raise HTTPException(400, str(error)) from error
            keep = store.save_answer if complete else store.save_draft
            await run_in_threadpool(keep, person, item.id, ranking)
            return answer_json({})

        return save_ranking

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
            Route("/", send_page),
            Route("/page/{name}", send_page),
            Route("/pictures/{name}", send_picture),
            Route("/api/study", send_study),
            Route("/api/people", join, methods=["POST"]),
            Route("/api/leave", leave, methods=["POST"]),
            Route("/api/sets/{set}", send_set),
            Route("/api/sets/{set}/draft", save(complete=False), methods=["PUT"]),
            Route("/api/sets/{set}/answer", save(complete=True), methods=["PUT"]),
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


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings; no more than :data:`MAX_BODY` bytes are read."""
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    # Forms of other sites cannot send this type.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected application/json")
    data = b""
    try:
        async for part in request.stream():
            data += part
            if len(data) > MAX_BODY:
                raise HTTPException(413, f"a request has at most {MAX_BODY} bytes")
    except ClientDisconnect:  # nobody will read this
        raise HTTPException(400, "the request broke off") from None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is no JSON") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "the request is no JSON object")
    return content


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
