"""The web server of a study: it serves the page and the pictures, and stores the answers.

A cookie identifies a person. ``GET /?set=N`` returns the page of their Nth set, at most the first
unanswered one, and ``GET /?join`` the start page. ``POST join`` with ``{"name": "..."}`` sets the
cookie, ``POST sets/ID`` with ``{"ranking": [TOKEN, ...]}`` stores an answer. No response reveals
which method made a picture.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.evaluation.rendering import render
from deep_image_compositing.evaluation.study.folder import ANSWERS, Store, Study
from deep_image_compositing.messages import show
from deep_image_compositing.web import Gate, listen

MAX_BODY = 4096  # bytes of a request's body; the page sends a few hundred at most
MAX_NAME = 80  # characters of a person's name
_YEAR = 365 * 24 * 3600


def serve(
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    intro: str = "",
    allowed_hosts: Iterable[str] = (),
) -> None:
    """Serve a study until the process is stopped; answers go to ``answers.sqlite``.

    Args:
        folder: a study from ``study make``; UsageError or DataError if it cannot be served.
        host: address to listen on; ``0.0.0.0`` for the whole network.
        port: port to listen on, 0 for any free one; UsageError if it is not available.
        intro: text of the first page in place of the default one.
        allowed_hosts: additional host names under which the server can be reached.
    """
    study = Study.open(folder)
    with Store(Path(folder) / ANSWERS, study.id) as store, listen(host, port) as listener:
        app = create_app(study, store, folder, intro, [host, *allowed_hosts])
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
        show(f"study at {address} (Ctrl-C stops the server; answers are kept)")
        sys.stdout.flush()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # the usual end
            show(f"stopped; people so far: {len(store.people())}")


def create_app(
    study: Study, store: Store, folder: str | Path, intro: str = "", hosts: Iterable[str] = ()
) -> Starlette:
    """The ASGI application, for one server process; see ``web.Gate`` for ``hosts``."""
    handlers = _Handlers(study, store, folder, intro)
    routes = [
        Route("/", handlers.page),
        Route("/pictures/{name}", handlers.picture),
        Route("/join", handlers.join, methods=["POST"]),
        Route("/sets/{set}", handlers.save, methods=["POST"]),
        Mount("/page", StaticFiles(directory=Path(__file__).with_name("page"))),
    ]
    gate = Middleware(Gate, hosts, lambda status, text: PlainTextResponse(text, status))
    errors = {CompositingError: _error_response, OSError: _error_response}
    return Starlette(routes=routes, middleware=[gate], exception_handlers=errors)


class _Handlers:
    def __init__(self, study: Study, store: Store, folder: str | Path, intro: str) -> None:
        self.study, self.store, self.intro = study, store, intro
        self.sets = {item.id: item for item in study.shown}
        self.pictures = {path.name: path for item in study.shown for path in item.paths(folder)}
        self.cookie = f"study-{study.id[:12]}"  # unique, because cookies are shared between ports

    def page(self, request: Request) -> Response:
        person = None if "join" in request.query_params else self._person(request)
        sets = self.study.order(person or "")
        rankings = {id_: ranking for _, id_, ranking, _ in self.store.answers(person or "")}
        number = 1 + [*(item.id in rankings for item in sets), False].index(False)
        if requested := re.fullmatch(r"[1-9]\d{0,8}", request.query_params.get("set", "")):
            number = min(number, int(requested[0]))
        values = {"person": person, "sets": sets, "rankings": rankings, "number": number}
        values |= {"methods": len(self.study.methods), "intro": self.intro}
        return HTMLResponse(render("study.html", **values))

    def picture(self, request: Request) -> Response:
        path = self.pictures.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such picture")
        # Not a FileResponse: its date would reveal the order in which methods ran.
        headers = {"cache-control": f"private, max-age={_YEAR}, immutable"}
        return Response(path.read_bytes(), media_type="image/webp", headers=headers)

    async def join(self, request: Request) -> Response:
        name = (await _body(request)).get("name", "")
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise HTTPException(400, f"a name is text of at most {MAX_NAME} characters")
        token, secure = self.store.join(name.strip()), request.url.scheme == "https"
        response = Response(status_code=204)
        response.set_cookie(
            self.cookie, token, _YEAR, secure=secure, httponly=True, samesite="strict"
        )
        return response

    async def save(self, request: Request) -> Response:
        body = await _body(request)
        person, item = self._person(request), self.sets.get(request.path_params["set"])
        if person is None:
            raise HTTPException(401, "this browser is not known, or no longer known")
        if item is None:
            raise HTTPException(404, "there is no such set")
        self.store.save(person, item.id, item.check(body.get("ranking")))
        return Response(status_code=204)

    def _person(self, request: Request) -> str | None:
        token = request.cookies.get(self.cookie, "")
        return token if token in self.store.people() else None


def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, UsageError):
        return PlainTextResponse(str(error), 400)
    show(f"error: {error}", file=sys.stderr)
    return PlainTextResponse("this server cannot read or write a file of the study", 500)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body."""
    # Forms of other sites cannot send this content type.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected application/json")
    length = request.headers.get("content-length", "")  # an endless body has none
    if not re.fullmatch(r"\d{1,4}", length) or int(length) > MAX_BODY:
        raise HTTPException(413, f"a request has at most {MAX_BODY} bytes, and says how many")
    try:
        content = await request.json()
    except (ValueError, RecursionError, ClientDisconnect):
        content = None
    if not isinstance(content, dict):
        raise HTTPException(400, "the request is no JSON object")
    return content
